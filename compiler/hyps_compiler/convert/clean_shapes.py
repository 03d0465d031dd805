"""Shapes that a graph computes at every run although they follow from its inputs' dimensions, made constants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hyps_compiler.convert.clean_constants import constant
from hyps_compiler.convert.clean_dims import Dim, origin

_MOST_ELEMENTS = 64
"""A shape has no more."""


@dataclass(frozen=True)
class _Other:
    """A number of which nothing is known."""


@dataclass(frozen=True)
class _Product:
    """A known factor times open dimensions, in an order that makes equal ones equal."""

    factor: int
    dims: tuple[Dim, ...]


_Number = int | Dim | _Product | _Other
_Numbers = list[_Number]


def fix_reshapes(graph: ir.Graph) -> bool:
    """Give Reshapes a constant shape where that says the same; return whether there were any.

    Each number of the shape is (1) known, (2) the dimension at the same place of what is reshaped, which a 0 says, or
    (3) the only one left beside known ones above zero, which a -1 says. What a -1 of the shape itself stands for is
    reckoned first. A shape that is constant already gets (4) a 0 in place of a -1 that says the same, from which shape
    inference learns more.
    """
    changed = False
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
            continue
        source, numbers = node.inputs[0], _numbers(node.inputs[1])
        if source is None or numbers is None:
            continue
        numbers = _without_rest(numbers, source)
        is_constant = constant(node.inputs[1]) is not None
        fixed = _copied(numbers, source) if is_constant else _fixed(numbers, source)
        if fixed is not None:
            _set_shape(graph, node, fixed)
            changed = True
    return changed


def _without_rest(numbers: _Numbers, source: ir.Value) -> _Numbers:
    """Return the numbers with what its -1 stands for, where that can be told and another one is open."""
    if numbers.count(-1) != 1 or all(isinstance(number, int) for number in numbers) or source.shape is None:
        return numbers
    if any(number == 0 for number in numbers):
        return numbers
    whole = _product([origin(source, axis) for axis in range(len(source.shape))])
    rest = _product([number for number in numbers if number != -1])
    if whole is None or rest is None or rest.factor == 0 or whole.factor % rest.factor:
        return numbers
    dims = list(whole.dims)
    for dim in rest.dims:
        if dim not in dims:
            return numbers
        dims.remove(dim)
    found = _plain(_Product(whole.factor // rest.factor, tuple(dims)))
    return [found if number == -1 else number for number in numbers]


def _product(numbers: Sequence[_Number]) -> _Product | None:
    """Return what several numbers come to, multiplied; None where one is not known at all."""
    factor = 1
    dims: list[Dim] = []
    for number in numbers:
        if isinstance(number, _Other):
            return None
        if isinstance(number, _Product):
            factor *= number.factor
            dims += number.dims
        elif isinstance(number, Dim):
            dims.append(number)
        else:
            factor *= number
    return _Product(factor, tuple(sorted(dims, key=lambda dim: (str(dim.value.name), dim.axis))))


def _plain(product: _Product) -> _Number:
    """Return a product as a number or a dimension where it is one."""
    if not product.dims:
        return product.factor
    return product.dims[0] if product.factor == 1 and len(product.dims) == 1 else product


def _copied(numbers: _Numbers, source: ir.Value) -> list[int] | None:
    """Return a constant shape with 0 for its -1, where that is the one open dimension of what is reshaped."""
    known = [number for number in numbers if isinstance(number, int)]
    if source.shape is None or known.count(-1) != 1 or any(number <= 0 for number in known if number != -1):
        return None
    sizes = [size for size in source.shape if isinstance(size, int)]
    place = known.index(-1)
    is_same = len(sizes) == len(source.shape) - 1 and place < len(source.shape)
    if not is_same or isinstance(source.shape[place], int) or math.prod(sizes) != -math.prod(known):
        return None
    return [0 if number == -1 else number for number in known]


def _fixed(numbers: _Numbers, source: ir.Value) -> list[int] | None:
    """Return a constant that says what the numbers say; None where none does."""
    rank = None if source.shape is None else len(source.shape)
    copied = [
        0
        if isinstance(number, Dim) and rank is not None and place < rank and number == origin(source, place)
        else number
        for place, number in enumerate(numbers)
    ]
    known = [number for number in copied if isinstance(number, int)]
    if len(known) == len(copied):
        return known
    if len(known) == len(copied) - 1 and all(number > 0 for number in known):  # a 0 or -1 beside -1 may say less
        return [number if isinstance(number, int) else -1 for number in copied]
    return None


def _set_shape(graph: ir.Graph, node: ir.Node, fixed: list[int]) -> None:
    name = f"{node.outputs[0].name}_shape"
    taken = _names(graph)
    while name in taken:
        name += "_"
    tensor = ir.Tensor(np.array(fixed, np.int64), name=name)
    weight = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers[name] = weight
    node.replace_input_with(1, weight)


def _names(graph: ir.Graph) -> set[str]:
    """Return the names of all values of a graph and of the graphs inside it."""
    found = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        found |= {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
    return found


def _numbers(value: ir.Value | None) -> _Numbers | None:
    """Return the elements of an integer vector or scalar as far as they are known; None where not even how many."""
    known = constant(value)
    if known is not None:
        is_small = known.dtype.kind in "iu" and known.ndim <= 1 and known.size <= _MOST_ELEMENTS
        return [int(number) for number in known.reshape(-1)] if is_small else None
    if value is None or value.shape is None or len(value.shape) > 1:  # the rules are of vectors and scalars
        return None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _RULES:
        return None
    return _RULES[node.op_type](node)


def _of_shape(node: ir.Node) -> _Numbers | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    numbers: _Numbers = [origin(source, axis) for axis in range(len(source.shape))]
    return numbers[start:end]


def _of_same(node: ir.Node) -> _Numbers | None:
    return _numbers(node.inputs[0])


def _of_cast(node: ir.Node) -> _Numbers | None:
    target = node.attributes["to"].as_int()
    return _numbers(node.inputs[0]) if target in (ir.DataType.INT32, ir.DataType.INT64) else None


def _of_gather(node: ir.Node) -> _Numbers | None:
    numbers, indices = _numbers(node.inputs[0]), constant(node.inputs[1])
    if numbers is None or indices is None or indices.ndim > 1:
        return None
    places = [int(index) for index in indices.reshape(-1)]
    return [numbers[place] for place in places] if all(-len(numbers) <= p < len(numbers) for p in places) else None


def _of_slice(node: ir.Node) -> _Numbers | None:
    numbers = _numbers(node.inputs[0])
    given = [constant(value) for value in node.inputs[1:]]
    if numbers is None or any(array is None or array.size != 1 for array in given) or len(given) < 2:
        return None
    start, end, *_ = (int(array.reshape(-1)[0]) for array in given if array is not None)
    step = int(given[3].reshape(-1)[0]) if len(given) > 3 and given[3] is not None else 1
    return numbers[start:end:step] if step > 0 else None


def _of_concat(node: ir.Node) -> _Numbers | None:
    parts = [_numbers(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return [number for part in known for number in part] if len(known) == len(parts) else None


def _of_arithmetic(node: ir.Node) -> _Numbers | None:
    """Return as many numbers as there are, of which only those of known ones are known."""
    if len(node.inputs) != 2:
        return None
    left, right = (_numbers(value) for value in node.inputs)
    if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
        return None
    count = max(len(left), len(right))
    pairs = zip(
        left * count if len(left) < count else left, right * count if len(right) < count else right, strict=False
    )
    return [_combined(node.op_type, one, other) for one, other in pairs]


def _of_product(node: ir.Node) -> _Numbers | None:
    numbers = _numbers(node.inputs[0])
    if numbers is None or len(node.inputs) > 1 or "axes" in node.attributes:
        return None
    product = _product(numbers)
    return [_Other() if product is None else _plain(product)]


def _combined(operator: str, left: _Number, right: _Number) -> _Number:
    if operator == "Mul":
        product = _product([left, right])
        return _Other() if product is None else _plain(product)
    if operator == "Max" and left == right and not isinstance(left, _Other):
        return left
    if not isinstance(left, int) or not isinstance(right, int):
        return _Other()
    if operator == "Max":
        return max(left, right)
    if operator == "Add":
        return left + right
    return left - right


_RULES: dict[str, Callable[[ir.Node], _Numbers | None]] = {
    "Add": _of_arithmetic,
    "Cast": _of_cast,
    "Concat": _of_concat,
    "Gather": _of_gather,
    "Identity": _of_same,
    "Max": _of_arithmetic,
    "Mul": _of_arithmetic,
    "ReduceProd": _of_product,
    "Shape": _of_shape,
    "Slice": _of_slice,
    "Squeeze": _of_same,
    "Sub": _of_arithmetic,
    "Unsqueeze": _of_same,
}
"""What a small computation on shapes makes of the numbers it reads."""
