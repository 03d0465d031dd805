"""Element types: numpy's names, as plans have them, and onnxruntime's."""

from hyps.errors import InternalError, printable

_ORT_NAMES = {
    "float32": "float",
    "float64": "double",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "string",
    "complex64": "complex64",
    "complex128": "complex128",
    **{f"float8_{kind}": f"float8{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")},
    "float8_e8m0fnu": "float8e8m0",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)},
}
_NUMPY_NAMES = {ort: numpy for numpy, ort in _ORT_NAMES.items()}

ITEM_NBYTES = {
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""Bytes of one element, of the types that numpy has and that can be sent as they are."""


def numpy_name(ort_type: str) -> str:
    """Return numpy's name of the element type in onnxruntime's words.

    >>> numpy_name("tensor(float)"), numpy_name("tensor(string)")
    ('float32', 'string')

    Raises:
        InternalError: `ort_type` is not a tensor's, or of an element type that is not known.
    """
    element = ort_type.removeprefix("tensor(").removesuffix(")")
    if element not in _NUMPY_NAMES:
        raise InternalError(f"`{printable(ort_type)}` is no known tensor type")
    return _NUMPY_NAMES[element]


def ort_type_name(dtype: str) -> str:
    """Return onnxruntime's words for a tensor of numpy's `dtype`; those for what is no tensor stay as they are.

    >>> ort_type_name("float32"), ort_type_name("seq(tensor(float))")
    ('tensor(float)', 'seq(tensor(float))')
    """
    if dtype.endswith(")"):
        return dtype
    return f"tensor({_ORT_NAMES.get(dtype, dtype)})"
