"""Where inside a partition the fault is: the first wrong tensor, the node that makes it, and what is odd there."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
from hyps_compiler.oracle import Oracle, by_shard, claims_of, expose, is_new, open_piece, told, with_parts
from hyps_compiler.ort import run
from hyps_compiler.subgraphs import Model, load_model
from hyps_compiler.verify import Fault, is_right

_SHOWN_CHANGES = 4
_OF_PIECES = ("Concat", "Slice")
"""Operators that take tensors apart and put them together where pieces need it."""

_PIECE = re.compile(r"\.\d+of\d+~*$")
_USE = re.compile(r"\.(?:all|carry|in|made)$")
"""What stands behind a tensor's name in those of its parts."""


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
        self, folder: Path, plan: Plan, oracle: Oracle, layers: Mapping[str, LayerRef], requests: Sequence[Feeds]
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

    def blame(self, fault: Fault) -> Fault:
        """Return the fault as that of the partition at whose door it lies.

        What parts of a sum should be, no tensor of the model tells: the partition that adds them up is seen to be wrong
        where one of them is. The one that is not what the model has inside it, or holds other weights, is at fault.
        """
        part = self._part(fault.partition)
        if fault.failure or not fault.outputs:
            return fault
        for maker in self._makers(part):
            looked_at = self._inside(maker, self._requests[fault.request])
            if looked_at is not None and (looked_at.differing()[0] or looked_at.odd_weight()[0]):
                return replace(fault, partition=maker.id, seen_in=fault.partition)
        return fault

    def place(self, fault: Fault) -> Place:
        """Return where in its partition the fault is."""
        part = self._part(fault.partition)
        border = fault.outputs[0].tensor if fault.outputs and not fault.seen_in else part.outputs[0]
        found = self.between(part.id, border)
        inside = self._inside(part, self._requests[fault.request])
        if inside is None:
            return found  # what it is given cannot be made
        tensor, difference = inside.failing() if fault.failure else inside.differing()
        changes: tuple[str, ...] = ()
        if not tensor:
            tensor, *told = inside.odd_weight()
            changes = tuple(told)
        if not tensor:
            return found
        node = inside.maker(tensor)
        return replace(
            found,
            tensor=tensor,
            difference=difference,
            node=node.name,
            op=node.op_type,
            layer=self._layer(node, part),
            changes=changes or inside.changes(node),
        )

    def _inside(self, part: Partition, request: Feeds) -> "_Inside | None":
        """Return a look into a partition on the model's own activations; None where one of them cannot be made."""
        model = load_model(self._folder / part.file)
        oracle = with_inner_parts(self._oracle, model, part.shard)
        try:
            given = self._untold(part, request)
        except HypsError:
            return None
        return _Inside(part, self._plan, model, oracle, request, given)

    def _untold(self, part: Partition, request: Feeds) -> dict[str, Any]:
        """Return those inputs of a partition that the model does not have, made of its own activations."""
        found: dict[str, Any] = {}
        for maker in self._makers(part):
            model = load_model(self._folder / maker.file)
            names = [name for name in maker.outputs if name in part.inputs and name not in self._oracle.makers]
            given = [name for name in maker.inputs if name in self._oracle.makers]
            good = {**request, **(run(expose(self._oracle, given), given, request) if given else {})}
            good.update(self._untold(maker, request))
            session = expose(model, names)
            found.update(run(session, names, {name: good[name] for name in maker.inputs}))
        return found

    def _makers(self, part: Partition) -> list[Partition]:
        """Return the partitions of whose outputs this one reads some that the model does not have."""
        untold = {name for name in part.inputs if name not in self._oracle.makers}
        return [maker for maker in self._plan.partitions if untold.intersection(maker.outputs)]

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
            kind = next((ref.kind for ref in self._layers.values() if ref.name == part.shard.layer), "")
            return LayerRef(part.layers[0], kind or self._operators(part))
        name = next(filter(None, node.output), "")
        maker = self._oracle.makers.get(name)
        is_merge = node.op_type == "Concat" and maker is not None and maker.op_type != "Concat"
        if maker is not None and name in self._layers and not is_merge:
            return self._layers[name]
        return LayerRef(node.name or name, node.op_type)

    def _operators(self, part: Partition) -> str:
        """Return the operators of an H-partition that is of several layers, but for what only pieces need."""
        nodes = load_model(self._folder / part.file).proto.graph.node
        return "+".join(node.op_type for node in nodes if node.op_type not in _OF_PIECES)


class _Inside:
    """One partition beside the model, both with their inner tensors told, on one request."""

    def __init__(
        self,
        part: Partition,
        plan: Plan,
        model: Model,
        oracle: Oracle,
        request: Feeds,
        given: Mapping[str, Any],
    ) -> None:
        """Take a partition, the model with its parts, and those inputs of the partition that the model lacks."""
        self._part, self._plan, self._model, self._oracle = part, plan, model, oracle
        self._request, self._untold = request, given
        self._claims = claims_of(model)

    def maker(self, tensor: str) -> NodeProto:
        """Return the partition's node that makes a tensor."""
        return self._model.makers[tensor]

    def differing(self) -> tuple[str, Difference | None]:
        """Return the first tensor that is wrong, in running order, and how; no name where none is, seen alone."""
        common = [name for name in self._model.made() if name in self._oracle.makers]
        scales = self._oracle.scales(common)
        whole, session = expose(self._oracle, [*common, *self._given(), *scales.values()]), expose(self._model, common)
        names = [name for name in common if name in told(whole) & told(session)]
        wanted = dict.fromkeys((*names, *self._given(), *scales.values()))
        good = {**self._request, **self._untold, **run(whole, list(wanted), self._request)}
        made = run(session, names, {name: good[name] for name in self._part.inputs})
        for name in names:
            largest = float(good[scales[name]]) if name in scales else 0.0
            if self._is_wrong(compare(name, good[name], made[name]).beside(largest)):
                return name, compare(name, good[name], made[name])
        return "", None

    def failing(self) -> tuple[str, Difference | None]:
        """Return the first tensor that is wrong before onnxruntime fails, or else what the node makes that fails."""
        given, request = self._given(), self._request
        good = {**request, **self._untold, **(run(expose(self._oracle, given), given, request) if given else {})}
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
            if self._is_wrong(difference):
                return name, difference
        return next(filter(None, nodes[high - 1].output)), None

    def odd_weight(self) -> tuple[str, ...]:
        """Return what is made of the first weight that is no part of the model's, and what is odd; else one empty text.

        It needs no tensor to compare with.
        """
        for node in self._model.proto.graph.node:
            for name in node.input:
                whole = _whole_name(name)
                if name not in self._model.weights or whole not in self._oracle.weights:
                    continue
                if not _is_some_part(self._model.weight(name), self._oracle.weight(whole)):
                    made = next(filter(None, node.output))
                    return made, f"its weight is no part of `{printable(whole, 60)}`"
        return ("",)

    def _is_wrong(self, difference: Difference) -> bool:
        """Return whether a tensor is wrong, rather than only seeming by its name to be the part of the model's."""
        if is_right(self._plan, self._part, difference, self._untold):
            return False
        is_guessed = self._part.shard is not None and not self._claims and difference.tensor not in self._part.outputs
        return not (is_guessed and difference.is_unlike)

    def _given(self) -> list[str]:
        return [name for name in self._part.inputs if name in self._oracle.makers]

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
        """Return in what a node is other than the model's that makes the same tensor, or of which it makes a part."""
        name = next(filter(None, node.output))
        shard = self._part.shard
        maker = self._oracle.makers.get(self._claims[name].of if name in self._claims else _unsuffixed(name, shard))
        if maker is None:
            return ()
        if node.op_type == "Concat" and maker.op_type != "Concat":
            return self._joined(node)
        if is_new(node) or (node.op_type in _OF_PIECES and node.op_type != maker.op_type):
            return self._added(node)
        found = _changes(node, maker) if shard is None else _changed_operator(node, maker) if self._claims else []
        found += _changed_inputs(self._model, node, self._oracle, maker, shard, self._spans(node))
        return tuple(dict.fromkeys(found))[:_SHOWN_CHANGES]

    def _added(self, node: NodeProto) -> tuple[str, ...]:
        """Return what can be told of a node that the model does not have."""
        untold = [name for name in node.input if name in self._untold]
        return (f"{len(untold)} of what it reads are no tensors of the model",) if untold else ()

    def _spans(self, node: NodeProto) -> "_Spans":
        """Return which positions of the model's weights a node may hold."""
        claims = [self._claims[name] for name in (*node.output, *node.input) if name in self._claims]
        spans = [(claim.start, claim.stop) for claim in claims if claim.axis is not None]
        shard = self._part.shard
        rows = 0 if self._claims else self._rows()
        return _Spans(rows, tuple(dict.fromkeys([*spans, *([shard.range] if shard else [])])))

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


def with_inner_parts(oracle: Oracle, partition: Model, shard: Shard | None) -> Oracle:
    """Return the oracle in which what a shard makes inside is a tensor too, as far as it claims what it is.

    Where nothing claims anything, names tell: `g.1of3` is the part of `g` that belongs to the shard's range.
    """
    claims = claims_of(partition)
    if not claims and shard is not None and shard.merge == "concat":
        whole = {name: _unsuffixed(name, shard) for name in partition.made()}
        claims = {name: by_shard(of, shard) for name, of in whole.items() if of != name}
    return with_parts(oracle, claims) if claims else oracle


def _unsuffixed(name: str, shard: Shard | None) -> str:
    return name if shard is None else name.removesuffix(f".{shard.index}of{shard.count}")


def _whole_name(name: str) -> str:
    """Return the name of the weight of which one of that name is a part."""
    return _PIECE.sub("", name)


@dataclass(frozen=True, slots=True)
class _Spans:
    """Which positions of a weight a piece may hold."""

    rows: int
    """Into how many rows its layer is divided; 0: positions are counted as they are."""
    spans: tuple[tuple[int, int], ...]

    def along(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the spans along an axis of that size."""
        blocks = size // self.rows if self.rows and size % self.rows == 0 else 0 if self.rows else 1
        for start, stop in self.spans:
            if blocks and stop * blocks <= size:
                yield start * blocks, stop * blocks


def _changed_operator(mine: NodeProto, theirs: NodeProto) -> list[str]:
    if (mine.domain, mine.op_type) == (theirs.domain, theirs.op_type):
        return []
    return [f"it is {printable(mine.op_type, 40)} instead of {printable(theirs.op_type, 40)}"]


def _changes(mine: NodeProto, theirs: NodeProto) -> list[str]:
    """Return in what operator and attributes a node is other than the model's."""
    if _changed_operator(mine, theirs):
        return _changed_operator(mine, theirs)
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
    model: Model, mine: NodeProto, oracle: Model, theirs: NodeProto, shard: Shard | None, spans: _Spans
) -> Iterator[str]:
    if len(mine.input) != len(theirs.input) and shard is None:
        yield f"it has {len(mine.input)} inputs instead of {len(theirs.input)}"
    for left, right in zip(mine.input, theirs.input, strict=False):
        if left in model.weights and right in oracle.weights:
            yield from _changed_weight(model.weight(left), oracle.weight(right), printable(right, 60), shard, spans)
        elif left != right and (shard is None or _tensor_of(left) != right):
            yield f"it reads `{printable(left, 60)}` instead of `{printable(right, 60)}`"


def _tensor_of(name: str) -> str:
    """Return the model's name of the tensor of which a piece reads a part."""
    return _USE.sub("", _whole_name(name))


def _changed_weight(mine: Any, theirs: Any, name: str, shard: Shard | None, spans: _Spans) -> Iterator[str]:
    if compare("", theirs, mine).is_identical:
        return
    if shard is None:
        yield f"its weight `{name}` {compare(name, theirs, mine)}"
    elif not any(np.array_equal(mine, candidate, equal_nan=False) for candidate in _slices(theirs, spans)):
        start, stop = shard.range
        if spans.rows:
            yield f"its weight is not the part of `{name}` that belongs to rows {start} to {stop - 1}"
        elif mine.shape == theirs.shape:
            yield f"its weight `{name}` {compare(name, theirs, mine)}"
        else:
            yield f"its weight is not the part of `{name}` that belongs to it"


def _slices(whole: Any, spans: _Spans) -> Iterator[Any]:
    """Yield the parts of a weight that a shard may hold: along any axis, as they are or transposed."""
    for axis in range(whole.ndim):
        for start, stop in spans.along(whole.shape[axis]):
            part = np.take(whole, range(start, stop), axis)
            yield part
            yield part.T


def _is_some_part(mine: Any, whole: Any) -> bool:
    """Return whether an array is consecutive positions of another along one axis, as they are or transposed.

    Where its shape says that it is something else, nothing is known against it.
    """
    wholes = [whole, *(whole if whole.ndim == mine.ndim + 1 else ())]
    pairs = [(one, form) for one in wholes for form in (mine, mine.T) if one.ndim == form.ndim]
    fitting = [(one, form, _axis_between(one.shape, form.shape)) for one, form in pairs]
    known = [(one, form, axis) for one, form, axis in fitting if axis is not None]
    return not known or any(_is_along(one, form, axis) for one, form, axis in known)


def _axis_between(whole: tuple[int, ...], part: tuple[int, ...]) -> int | None:
    """Return the one axis along which the shapes differ, 0 where they do not; None where that cannot be."""
    axes = [axis for axis, (large, small) in enumerate(zip(whole, part, strict=True)) if large != small]
    if len(axes) > 1 or not whole or any(small > large for large, small in zip(whole, part, strict=True)):
        return None
    return axes[0] if axes else 0


def _is_along(whole: Any, part: Any, axis: int) -> bool:
    large, small = np.moveaxis(whole, axis, 0), np.moveaxis(part, axis, 0)
    length = small.shape[0]
    if not length:
        return True
    first = small[0]
    return any(
        np.array_equal(large[start], first) and np.array_equal(large[start : start + length], small)
        for start in range(large.shape[0] - length + 1)
    )
