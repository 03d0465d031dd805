"""Where inside a partition the fault is: the first wrong tensor, the node that makes it, and what is odd there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper

from hyps.errors import HypsError, printable
from hyps.formats.plan import Partition, Plan, Shard
from hyps_compiler.compare import Difference, compare
from hyps_compiler.measure import Feeds
from hyps_compiler.oracle import expose, open_piece, told, with_parts
from hyps_compiler.ort import run
from hyps_compiler.subgraphs import Model, load_model
from hyps_compiler.verify import Fault, is_right

_SHOWN_CHANGES = 4


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer as people know it."""

    name: str
    kind: str

    def __str__(self) -> str:
        """Return `conv1 (Conv+Relu)`."""
        return f"{printable(self.name, 60)} ({printable(self.kind, 60)})"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plan goes wrong."""

    partition: str
    shard: Shard | None
    border: str
    """The first border that is wrong."""
    good: tuple[str, ...]
    """The last good borders before it, or inputs of the model: what the partition reads on the way to it."""
    layers: tuple[LayerRef, ...]
    """Those between the last good borders and it, in running order."""
    tensor: str = ""
    """The first tensor inside the partition that is wrong; empty where that cannot be told."""
    difference: Difference | None = None
    """Of that tensor; None where onnxruntime does not make it."""
    node: str = ""
    op: str = ""
    layer: LayerRef | None = None
    """Of that node."""
    changes: tuple[str, ...] = ()
    """In what the node is other than the model's; empty where it is the same, or cannot be compared."""


class Locator:
    """Finds the place of a fault in the partitions of one plan."""

    def __init__(
        self, folder: Path, plan: Plan, oracle: Model, layers: Mapping[str, LayerRef], requests: Sequence[Feeds]
    ) -> None:
        """Take a plan and its judge.

        Args:
            folder: the plan folder.
            plan: what it holds.
            oracle: the uncut model in which every border is a tensor.
            layers: the layer that makes each tensor of the model.
            requests: those that the plan was verified on.
        """
        self._folder, self._plan, self._oracle, self._layers = folder, plan, oracle, layers
        self._requests = requests

    def place(self, fault: Fault) -> Place:
        """Return where in its partition the fault is."""
        part = self._part(fault.partition)
        border = fault.outputs[0].tensor if fault.outputs else part.outputs[0]
        found = self.between(part.id, border)
        model = load_model(self._folder / part.file)
        if not all(name in self._oracle.makers or name in self._requests[0] for name in part.inputs):
            return found  # what it is given is no tensor of the model
        inside = _Inside(part, self._plan, model, with_inner_parts(self._oracle, model.made(), part.shard))
        request = self._requests[fault.request]
        tensor, difference = inside.failing(request) if fault.failure else inside.differing(request)
        if not tensor:
            return found
        node = model.makers[tensor]
        return replace(
            found,
            tensor=tensor,
            difference=difference,
            node=node.name,
            op=node.op_type,
            layer=self._layer(node, part),
            changes=inside.changes(node),
        )

    def between(self, partition: str, border: str) -> Place:
        """Return the layers on the way to a border, without looking inside."""
        part = self._part(partition)
        model = load_model(self._folder / part.file)
        piece = model.piece([border], part.inputs)
        layers = dict.fromkeys(self._layer(node, part) for node in piece.nodes if _is_variable(node, model, part))
        return Place(partition, part.shard, border, piece.inputs, tuple(layers))

    def _part(self, partition: str) -> Partition:
        return next(part for part in self._plan.partitions if part.id == partition)

    def _layer(self, node: NodeProto, part: Partition) -> LayerRef:
        """Return the model's layer to which a partition's node belongs, or the node itself where it is a new one."""
        if part.shard is not None:
            kind = next((ref.kind for ref in self._layers.values() if ref.name == part.shard.layer), node.op_type)
            return LayerRef(part.layers[0], kind)
        name = next(filter(None, node.output), "")
        maker = self._oracle.makers.get(name)
        is_merge = node.op_type == "Concat" and maker is not None and maker.op_type != "Concat"
        if maker is not None and name in self._layers and not is_merge:
            return self._layers[name]
        return LayerRef(node.name or name, node.op_type)


class _Inside:
    """One partition beside the model, both with their inner tensors told."""

    def __init__(self, part: Partition, plan: Plan, model: Model, oracle: Model) -> None:
        self._part, self._plan, self._model, self._oracle = part, plan, model, oracle

    def differing(self, request: Feeds) -> tuple[str, Difference | None]:
        """Return the first tensor that is wrong, in running order, and how; no name where none is, seen alone."""
        common = [name for name in self._model.made() if name in self._oracle.makers]
        whole, session = expose(self._oracle, [*common, *self._given()]), expose(self._model, common)
        names = [name for name in common if name in told(whole) & told(session)]
        good = {**request, **run(whole, list(dict.fromkeys((*names, *self._given()))), request)}
        made = run(session, names, {name: good[name] for name in self._part.inputs})
        for name in names:
            difference = compare(name, good[name], made[name])
            if not is_right(self._plan, self._part, difference) and not self._is_unmatched(name, difference):
                return name, difference
        return "", None

    def failing(self, request: Feeds) -> tuple[str, Difference | None]:
        """Return the first tensor that is wrong before onnxruntime fails, or else what the node makes that fails."""
        given = self._given()
        good = {**request, **(run(expose(self._oracle, given), given, request) if given else {})}
        nodes = [node for node in self._model.proto.graph.node if any(node.output)]
        low, high = 0, len(nodes)  # the first `low` nodes run, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._made(nodes[:middle], good) is not None else (low, middle)
        made = self._made(nodes[:low], good) or {}
        names = [name for name in made if name in self._oracle.makers]
        right = run(expose(self._oracle, names), names, request) if names else {}
        for name in names:
            difference = compare(name, right[name], made[name])
            if not is_right(self._plan, self._part, difference) and not self._is_unmatched(name, difference):
                return name, difference
        return next(filter(None, nodes[high - 1].output)), None

    def _given(self) -> list[str]:
        return [name for name in self._part.inputs if name in self._oracle.makers]

    def _is_unmatched(self, name: str, difference: Difference) -> bool:
        """Return whether a tensor inside a shard only seems to be the part of the model's tensor by its name."""
        return self._part.shard is not None and name not in self._part.outputs and difference.is_unlike

    def _made(self, nodes: Sequence[NodeProto], good: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the nodes make, in their order; None where onnxruntime refuses or fails to run them."""
        outputs = [name for node in nodes for name in node.output if name]
        if not outputs:
            return {}
        piece = self._model.piece(outputs, self._part.inputs)
        try:
            session = open_piece(self._model, piece, good)
            names = [name for name in outputs if name in told(session)]
            return run(session, names or outputs[:1], {name: good[name] for name in piece.inputs})
        except HypsError:
            return None

    def changes(self, node: NodeProto) -> tuple[str, ...]:
        """Return in what a node is other than the model's that makes the same tensor."""
        name = next(filter(None, node.output))
        shard = self._part.shard
        maker = self._oracle.makers.get(_unsuffixed(name, shard))
        if maker is None:
            return ()
        if node.op_type == "Concat" and maker.op_type != "Concat":
            return self._joined(node)
        found = _changes(node, maker) if shard is None else []
        found += _changed_inputs(self._model, node, self._oracle, maker, shard, self._rows())
        return tuple(dict.fromkeys(found))[:_SHOWN_CHANGES]

    def _joined(self, node: NodeProto) -> tuple[str, ...]:
        """Return in what a merge is other than the plan says: it is no node of the model."""
        shards = {name: part.shard for part in self._plan.partitions if part.shard for name in part.outputs}
        order = [shard.index + 1 for shard in (shards.get(name) for name in node.input) if shard is not None]
        is_whole = len(order) == len(node.input) and order == list(range(1, len(order) + 1))
        return () if is_whole else (f"it joins the shards in the order {', '.join(map(str, order))}",)

    def _rows(self) -> int:
        """Return into how many rows the shards divide their layer."""
        mine = self._part.shard
        shards = [part.shard for part in self._plan.partitions]
        return max(
            (s.range[1] for s in shards if s is not None and mine is not None and s.layer == mine.layer), default=0
        )


def _is_variable(node: NodeProto, model: Model, part: Partition) -> bool:
    """Return whether a node computes from the partition's inputs, not from weights alone."""
    return bool(model.piece(list(filter(None, node.output)), part.inputs).inputs)


def with_inner_parts(oracle: Model, names: Iterable[str], shard: Shard | None) -> Model:
    """Return the oracle in which what a shard makes inside is a tensor too, as far as its names tell of what it is."""
    if shard is None:
        return oracle
    parts = {name: (_unsuffixed(name, shard), shard) for name in names if name not in oracle.makers}
    proto = onnx.ModelProto()
    proto.CopyFrom(oracle.proto)
    known = {name: of for name, of in parts.items() if of[0] in oracle.makers and of[0] != name}
    return with_parts(Model(proto, oracle.folder), known)


def _unsuffixed(name: str, shard: Shard | None) -> str:
    return name if shard is None else name.removesuffix(f".{shard.index}of{shard.count}")


def _changes(mine: NodeProto, theirs: NodeProto) -> list[str]:
    """Return in what operator and attributes a node is other than the model's."""
    if (mine.domain, mine.op_type) != (theirs.domain, theirs.op_type):
        return [f"it is {printable(mine.op_type, 40)} instead of {printable(theirs.op_type, 40)}"]
    left, right = ({attribute.name: attribute for attribute in node.attribute} for node in (mine, theirs))
    return [
        f"its attribute `{printable(name, 40)}` is {_value(left.get(name))} instead of {_value(right.get(name))}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]


def _value(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "absent"
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.TENSOR):
        return "another"
    value = helper.get_attribute_value(attribute)
    return printable(value.decode(errors="replace") if isinstance(value, bytes) else str(value), 40)


def _changed_inputs(
    model: Model, mine: NodeProto, oracle: Model, theirs: NodeProto, shard: Shard | None, rows: int
) -> Iterator[str]:
    if len(mine.input) != len(theirs.input) and shard is None:
        yield f"it has {len(mine.input)} inputs instead of {len(theirs.input)}"
    for left, right in zip(mine.input, theirs.input, strict=False):
        if left in model.weights and right in oracle.weights:
            yield from _changed_weight(model.weight(left), oracle.weight(right), printable(right, 60), shard, rows)
        elif left != right and _unsuffixed(left, shard) != right:
            yield f"it reads `{printable(left, 60)}` instead of `{printable(right, 60)}`"


def _changed_weight(mine: Any, theirs: Any, name: str, shard: Shard | None, rows: int) -> Iterator[str]:
    if compare("", theirs, mine).is_identical:
        return
    if shard is None:
        yield f"its weight `{name}` {compare(name, theirs, mine)}"
    elif not any(np.array_equal(mine, candidate, equal_nan=False) for candidate in _slices(theirs, shard, rows)):
        start, stop = shard.range
        yield f"its weight is not the part of `{name}` that belongs to rows {start} to {stop - 1}"


def _slices(whole: Any, shard: Shard, rows: int) -> Iterator[Any]:
    """Yield the parts of a weight that a shard may hold: along any axis, as they are or transposed."""
    for axis in range(whole.ndim):
        if rows and whole.shape[axis] % rows == 0:
            blocks = whole.shape[axis] // rows
            part = np.take(whole, range(shard.range[0] * blocks, shard.range[1] * blocks), axis)
            yield part
            yield part.T
