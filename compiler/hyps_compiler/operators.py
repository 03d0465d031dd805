"""Which operators there are."""

import functools

import onnx.defs
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state


@functools.cache
def known_operators() -> frozenset[tuple[str, str]]:
    """Return domain and name of every operator, of any version, that onnx or this onnxruntime knows.

    The standard domain is the empty word. Empty where this build of onnxruntime does not tell.
    """
    told = getattr(onnxruntime_state, "get_all_operator_schema", None)
    if told is None:
        return frozenset()
    schemas = [*onnx.defs.get_all_schemas_with_history(), *told()]
    return frozenset(("" if schema.domain == "ai.onnx" else schema.domain, schema.name) for schema in schemas)
