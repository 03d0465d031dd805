"""What an exported program might run beside its network when PyTorch reads it, found before PyTorch does.

An exported program is data by intent: JSON that lists operators, and tensors. PyTorch's reader trusts it, though: it
evaluates the sizes and guards in it as Python, writes its names into Python source, looks its operators up by any path
from `torch` on, and unpickles what is no plain tensor. So everything in it that is more than a name, a number, an
operator of PyTorch's own or arithmetic on sizes is refused here. That is a list of what is known to be harmless, not of
what is known to be harmful: the unknown is refused as well.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from hyps.errors import printable

_WORD = re.compile(r"[\w.:$+-]*")
"""Names of tensors, inputs and devices. Some become Python names, so that nothing may be in them that ends one."""

_LABEL = re.compile(r"[\w.:/@ -]*")
"""Keys of dicts that `forward` takes or returns."""

_MEMBERS = re.compile(
    r"[^/]+/(?:(?:data/(?:weights|constants|sample_inputs)|models|extra)/[^/]+"
    r"|archive_format|archive_version|byteorder|version|\.data/(?:version|serialization_id))"
    r"|serialized_\w+\.(?:json|pt)|version|extra_files/.+"
)
"""Of an archive; the second line is that of PyTorch before 2.8. Libraries, which its reader loads, lie elsewhere."""

_PLAIN_FILE = re.compile(r"(weight|tensor)_\d+")
"""Other members with tensors or constants are custom objects, which are unpickled."""

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision|onnx)\."
    r"(?!from_file\b)(?:[A-Za-z]\w*|_[A-Za-z]\w*|__(?:and|or|xor|lshift|rshift)__)\.[A-Za-z]\w*"
    r"|torch\.ops\.higher_order\.(?:associative_scan|cond|flex_attention|map_impl|scan|while_loop|wrap_with_autocast"
    r"|wrap_with_set_grad_enabled)"
    r"|torch\._?sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(?:abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub"
    r"|truediv|xor)"
)
"""Operators that compute values from values. `aten::from_file` maps a file of any name."""

_FUNCTIONS = frozenset(
    "Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality Float FloatPow FloatTrueDiv FloorDiv FloorToInt Ge GreaterThan"
    " Gt Integer IntTrueDiv IsNonOverlappingAndDenseIndicator L LShift Le LessThan Lt Max Min Mod ModularIndexing Mul"
    " Ne Not Or Piecewise Pow PowByNatural PythonMod RShift Rational RoundDecimal RoundToInt StrictGreaterThan"
    " StrictLessThan Symbol ToFloat TruncToFloat TruncToInt Unequality Where abs ceiling false floor int_oo len max min"
    " oo sqrt sym_max sym_min true".split()
)
_GROWING = frozenset(("FloatPow", "LShift", "Pow", "PowByNatural"))
_MOST_GROWTH = 1024
"""Exponents of powers in each other, multiplied: `9**9**9` would take the machine's time and memory."""
_SYMBOL = re.compile(r"(s|u|zuf|zf)\d+")
_METHODS = frozenset(("dim", "numel", "size", "storage_offset", "stride"))
_ARITHMETIC = (
    ast.Expression,
    ast.Load,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.keyword,
    ast.Subscript,
    ast.boolop,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)
_MOST_CHARACTERS = 20_000
"""Of one expression: Python's own parser fails on much longer ones."""


def find_member(names: Iterable[str]) -> str:
    """Return the member of an exported program's archive that is none of its parts, as a phrase; empty without one."""
    return next((f"the member `{printable(name)}`" for name in names if not _MEMBERS.fullmatch(name)), "")


def find_code(documents: Iterable[tuple[str, bytes]]) -> str:
    """Return what in an exported program PyTorch might run as code, as a phrase; empty where nothing is found.

    Args:
        documents: name and content of the JSON documents in the archive.
    """
    for name, content in documents:
        try:
            found = next(_findings(json.loads(content), ""), "")
        except (ValueError, RecursionError):  # of json, for text that PyTorch's reader, which uses it too, fails on
            found = f"`{printable(name)}`, which is no JSON"
        if found:
            return found
    return ""


def _findings(value: Any, key: str) -> Iterator[str]:
    """Yield what is more than data in a part of a document that stands under `key`."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not _WORD.fullmatch(name):
                yield f"the name `{printable(name)}`"
            elif name != "metadata":  # where the operators came from, in words; never evaluated
                yield from _findings(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _findings(part, key)
    elif isinstance(value, str):
        yield from _findings_in_text(value, key)


def _findings_in_text(text: str, key: str) -> Iterator[str]:
    if key in ("target", "as_operator"):
        if not _OPERATORS.fullmatch(text):
            yield f"the operator `{printable(text)}`"
    elif key in ("expr_str", "guards_code"):
        if not is_arithmetic(text):
            yield f"the expression `{printable(text)}`"
    elif key in ("in_spec", "out_spec", "treespec"):
        yield from _findings_in_tree(text)
    elif key == "path_name":
        if not _PLAIN_FILE.fullmatch(text):
            yield f"the custom object `{printable(text)}`"
    elif key not in ("as_string", "as_strings") and not _WORD.fullmatch(text):
        yield f"the name `{printable(text)}`"


def _findings_in_tree(text: str) -> Iterator[str]:
    """Yield what is more than a nest of containers in the structure of inputs or outputs: JSON, with JSON in it."""
    pending: list[Any] = [text]
    while pending:
        part = pending.pop()
        if isinstance(part, str) and part[:1] in ("[", "{", '"'):
            try:
                pending.append(json.loads(part))
            except ValueError:
                yield f"the structure `{printable(part)}`"
        elif isinstance(part, str) and not _LABEL.fullmatch(part):
            yield f"the key `{printable(part)}`"
        elif isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            if {"__enum__", "default_factory_module"} & part.keys():  # these import a module
                yield "a container of a class of its own"
            pending.extend([*part.keys(), *part.values()])


def is_arithmetic(text: str) -> bool:
    """Return whether an expression does nothing but compute with sizes, such as `2*s0` or `L['x'].size()[0] == 4`.

    >>> is_arithmetic("FloorDiv(s0, 2) + 1"), is_arithmetic("exit(1)")
    (True, False)
    """
    if len(text) > _MOST_CHARACTERS or not text.isprintable() or '"' in text or "\\" in text:
        return False
    try:
        expression = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_harmless, ast.walk(expression))) and _growth(expression) <= _MOST_GROWTH


def _growth(expression: ast.AST) -> float:
    """Return by what factor powers of powers lengthen a number at most; infinite where an exponent is no number."""
    most, pending = 1.0, [(expression, 1.0)]
    while pending:
        node, factor = pending.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            factor *= _exponent(node.right)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _GROWING:
            factor *= _exponent(node.args[1]) if len(node.args) == 2 else math.inf
        most = max(most, factor)
        pending += [(child, factor) for child in ast.iter_child_nodes(node)]
    return most


def _exponent(node: ast.AST) -> float:
    if isinstance(node, ast.UnaryOp):
        return _exponent(node.operand)
    if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
        return math.inf
    return max(1.0, float(min(node.value, _MOST_GROWTH + 1)))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or (
            isinstance(node.value, str) and _LABEL.fullmatch(node.value) is not None
        )
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute)
    return isinstance(node, _ARITHMETIC)
