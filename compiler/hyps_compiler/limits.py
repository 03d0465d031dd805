"""How large a model may be. Counted before any library works on it, so that a small file cannot cost hours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import FunctionProto, ModelProto, NodeProto

from hyps.errors import ModelError, printable
from hyps_compiler.walk import Body, bodies, inside

MOST_FILE_NBYTES = 2**31 - 1
"""What protobuf can hold; weights may lie in other files."""
MOST_TENSOR_NBYTES = 2 * 2**30
"""What one tensor may take that the model computes, unless the user says otherwise; weights may be larger."""
MOST_NODES = 10**6
MOST_GRAPHS_DEEP = 32
"""Graphs in graphs, once functions stand where they are called. Protobuf reads no deeper."""
MOST_FUNCTIONS_DEEP = 16
"""Functions that call functions."""

FunctionName = tuple[str, str, str]
"""Domain, name and overload."""

_TRUST = "it cannot be a model that someone trained: do not use it"


@dataclass(frozen=True, slots=True)
class _Extent:
    """What stands in the place of a call once everything is inlined."""

    nodes: int = 0
    graphs_deep: int = 0
    functions_deep: int = 0


def check_written(model: ModelProto, shown: str) -> None:
    """Refuse a model that is too large or too deep as it is written; its names may still be damaged.

    Raises:
        ModelError: over a limit (`E_LIMIT`).
    """
    if any(depth > MOST_GRAPHS_DEEP for _, depth in bodies(model)):
        raise too_deep(shown)
    if sum(len(body.node) for body, _ in bodies(model)) > MOST_NODES:
        raise _limit_error(f"{shown} has more than {MOST_NODES} nodes")


def check_inlined(model: ModelProto, shown: str) -> None:
    """Refuse a model that is too large or too deep once its functions are inlined; nothing is inlined to find out.

    Raises:
        ModelError: over a limit (`E_LIMIT`), or a function that stands twice or calls itself (`E_GRAPH`).
    """
    extents = _extents(functions_by_name(model), shown)
    _check(_extent(model.graph, extents), shown)


def too_deep(shown: str) -> ModelError:
    """Return the refusal of graphs within graphs."""
    return _limit_error(f"{shown} nests graphs deeper than {MOST_GRAPHS_DEEP}")


def functions_by_name(model: ModelProto) -> dict[FunctionName, FunctionProto]:
    """Return the model's own functions.

    Raises:
        ModelError: two have one name (`E_GRAPH`).
    """
    found: dict[FunctionName, FunctionProto] = {}
    for function in model.functions:
        name = (_domain(function.domain), function.name, function.overload)
        if name in found:
            raise ModelError(f"two functions are called `{_shown(name)}`", "export the model again", "E_GRAPH")
        found[name] = function
    return found


def called(node: NodeProto) -> FunctionName:
    """Return the name of the function that the node calls, if there is one of that name."""
    return _domain(node.domain), node.op_type, node.overload


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _extents(functions: Mapping[FunctionName, FunctionProto], shown: str) -> dict[FunctionName, _Extent]:
    """Return what each function becomes, callees first; stops at the first that is too much, before numbers explode."""
    calls = {name: _calls(function, functions) for name, function in functions.items()}
    found: dict[FunctionName, _Extent] = {}
    for start in functions:
        path: dict[FunctionName, Iterator[FunctionName]] = {start: iter(calls[start])} if start not in found else {}
        while path:
            name, rest = next(reversed(path.items()))
            callee = next((callee for callee in rest if callee not in found), None)
            if callee is None:
                del path[name]
                found[name] = _extent(functions[name], found)
                _check(found[name], f"function `{_shown(name)}` of {shown}")
            elif callee in path:
                raise ModelError(f"function `{_shown(callee)}` calls itself", "export the model again", "E_GRAPH")
            else:
                path[callee] = iter(calls[callee])
    return found


def _calls(function: FunctionProto, functions: Mapping[FunctionName, FunctionProto]) -> list[FunctionName]:
    names = dict.fromkeys(called(node) for body, _ in inside(function) for node in body.node)
    return [name for name in names if name in functions]


def _extent(outer: Body, known: Mapping[FunctionName, _Extent]) -> _Extent:
    nodes = graphs_deep = functions_deep = 0
    for body, depth in inside(outer):
        for node in body.node:
            callee = known.get(called(node))
            nodes += callee.nodes if callee else 1
            graphs_deep = max(graphs_deep, depth + (callee.graphs_deep if callee else 0))
            functions_deep = max(functions_deep, callee.functions_deep + 1 if callee else 0)
    return _Extent(nodes, graphs_deep, functions_deep)


def _check(found: _Extent, where: str) -> None:
    if found.functions_deep > MOST_FUNCTIONS_DEEP:
        raise _limit_error(f"{where} nests functions deeper than {MOST_FUNCTIONS_DEEP}")
    if found.nodes > MOST_NODES:
        raise _limit_error(f"{where} has {_about(found.nodes)} nodes once inlined, more than {MOST_NODES}")
    if found.graphs_deep > MOST_GRAPHS_DEEP:
        raise too_deep(where)


def _about(count: int) -> str:
    return str(count) if count < 10**12 else f"more than 10^{len(str(count)) - 1}"


def _shown(name: FunctionName) -> str:
    return printable(":".join(part for part in name if part))


def _limit_error(message: str) -> ModelError:
    return ModelError(message, _TRUST, "E_LIMIT")
