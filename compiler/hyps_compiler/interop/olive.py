"""Olive's split assignments: in the model's metadata, `split_assignments` = `name=index;name=index`.

The names are those of modules of the original PyTorch model. A node belongs to the longest one that its own name begins
with, part by part: `/model/layers.3/mlp/MatMul` to `model.layers.3`. Olive's `CaptureSplitInfo` finds the assignments,
its conversion to ONNX writes them, its `SplitModel` reads them.
"""

from collections.abc import Mapping, Sequence

from onnx import ModelProto

from hyps.errors import ModelError, printable
from hyps_compiler.interop.dag import Dag, spread
from hyps_compiler.interop.wanted import Wanted

KEY = "split_assignments"

_MOST_SPLIT = 10**6
_MOST_PARTS = 64
"""Of a module's name: a stranger's may have millions."""
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_FORM = f"write the metadata `{KEY}` as `name=0;other.name=1`"
_SEPARATORS = "=;"


def has_assignments(model: ModelProto) -> bool:
    """Return whether the model has Olive's metadata, right or wrong."""
    return any(entry.key == KEY for entry in model.metadata_props)


def read_assignments(model: ModelProto) -> dict[str, int]:
    """Return the split of each module.

    Raises:
        ModelError: the metadata has another form, or stands twice.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if len(texts) != 1:
        raise _error(f"the metadata `{KEY}` stands {len(texts)} times in the model")
    found: dict[str, int] = {}
    for part in filter(None, texts[0].split(";")):
        name, _, number = part.rpartition("=")
        name = name.strip()
        if not name or not _is_index(number.strip()):
            raise _error(f"`{printable(part)}` in the metadata `{KEY}` is no `name=index`")
        split = int(number)
        if split > _MOST_SPLIT:
            raise _error(f"module `{printable(name)}` is in split {split} of `{KEY}`, and {_MOST_SPLIT} is the highest")
        if found.setdefault(name, split) != split:
            raise _error(f"module `{printable(name)}` is in splits {found[name]} and {split} of `{KEY}`")
    if not found:
        raise _error(f"the metadata `{KEY}` is empty")
    return found


def wanted_by_olive(model: ModelProto, dag: Dag) -> Wanted:
    """Return how the model is to be divided by its metadata, as Olive's `SplitModel` reads it.

    Where a node needs what a later split makes, it runs there; quantizing stays with what it quantizes, dequantizing
    goes with what reads it. What no module claims follows its neighbours, see `spread`.

    Raises:
        ModelError: the metadata is of a wrong form, or no node belongs to any of its modules.
    """
    given = given_stages(model, dag)
    following = {i for i, node in enumerate(dag.nodes) if node.op_type == "DequantizeLinear"}
    stages, moved = spread(dag, given, following=following)
    return Wanted(f"`{KEY}`", dag.stage_of_tensors(stages), dag.crossing(stages), moved)


def given_stages(model: ModelProto, dag: Dag) -> dict[int, int]:
    """Return the splits of the nodes that belong to modules of the metadata, by their positions.

    Raises:
        ModelError: as of `wanted_by_olive`.
    """
    modules = read_assignments(model)
    given = {}
    for index, node in enumerate(dag.nodes):
        split = split_of(node.name, modules)
        if split is not None and node.op_type not in _QUANTIZING and index not in dag.constants:
            given[index] = split
    if not given:
        name = printable(next(iter(modules)))
        raise _error(f"no node's name begins with a module of `{KEY}`, such as `{name}`", "keep the exporter's names")
    return given


def split_of(name: str, modules: Mapping[str, int]) -> int | None:
    """Return the split of the longest module that a node's name begins with; None where there is none."""
    parts = dotted(name).split(".")
    for length in range(min(len(parts), _MOST_PARTS), 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return modules[module]
    return None


def dotted(name: str) -> str:
    """Return a node's name as that of a module."""
    return name.replace("/", ".").lstrip(".")


def write_assignments(model: ModelProto, stages: Mapping[int, int]) -> None:
    """Replace the model's assignments: the shortest prefixes of names that tell the stages of all nodes.

    Args:
        model: nodes without a name, or with one that another node has or that no assignment can hold, get a new one.
        stages: by the node's position.
    """
    _name_nodes(model, stages)
    names = {index: dotted(model.graph.node[index].name) for index in sorted(stages)}
    value = ";".join(f"{name}={split}" for name, split in _prefixes(names, stages).items())
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    for key, text in [*others, (KEY, value)]:
        model.metadata_props.add(key=key, value=text)


def _prefixes(names: Mapping[int, str], stages: Mapping[int, int]) -> dict[str, int]:
    """Return the shortest prefixes all of whose nodes are of one stage, and whole names where there is none."""
    held: dict[str, set[int]] = {}
    for index, name in names.items():
        for prefix in _beginnings(name):
            held.setdefault(prefix, set()).add(stages[index])
    found: dict[str, int] = {}
    for index, name in names.items():
        told = next((prefix for prefix in _beginnings(name) if len(held[prefix]) == 1), name)
        found[told] = stages[index]
    return found


def _beginnings(name: str) -> Sequence[str]:
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _name_nodes(model: ModelProto, stages: Mapping[int, int]) -> None:
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = dotted(node.name)
        cannot_hold = any(letter in name for letter in _SEPARATORS) or name.count(".") >= _MOST_PARTS
        if index in stages and (not name or name in taken or cannot_hold):
            node.name = f"node_{index}"
            while dotted(node.name) in taken:
                node.name += "_"
        taken.add(dotted(node.name))


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _error(message: str, hint: str = _FORM) -> ModelError:
    return ModelError(message, hint, "E_ANNOTATION")
