"""Groups nodes into layers, so that no cut breaks a fusion of onnxruntime, and builds the cut graph over them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import networkx as nx
import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps.formats.weight_blocks import rows_nbytes
from hyps_passes import ops
from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer, can_cross, is_parameter, is_plain, nbytes_of
from hyps_passes.lookups import find_look_ups, is_table
from hyps_passes.workspace import ALIASES, overwritten_input, workspace_bytes

SHARD = "hyps.shard"
"""Key in `Node.meta` under which a rewrite says which H-partition the node belongs to."""

CUT = "hyps.cut"
"""Key in `Value.meta` of a value at which the user cuts, so that no layer reaches over it."""

_SMALL_ELEMENTS = 16
_FUSED_PREFIX = "fused "  # onnxruntime's, before the name of the node it fused others into
_FOLLOWERS = ops.UNARY_ELEMENTWISE | ops.BINARY_ELEMENTWISE | ops.NORMALIZATIONS


def build_cut_graph(
    model: ir.Model,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    fused: Collection[str] = (),
    grouped: bool = True,
) -> CutGraph:
    """Return the layers of a normalised model and the values between them.

    Args:
        model: every value named, topologically sorted, functions inlined, types of all values known.
        sizes: concrete shape of each tensor by name, as far as known; bytes are reckoned from them.
        fused: names of values that onnxruntime's fusions do away with; their producer and consumers stay together.
        grouped: False makes every node a layer of its own (but what cannot be separated stays together).
    """
    return _Builder(model, ops.Shapes(dict(sizes)), frozenset(fused), grouped).build()


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Return the outer values that the node's nested graphs use, at any depth, each once, in order of use."""
    found: dict[int, ir.Value] = {}
    for graph in ops.subgraphs(node):
        _collect_captures(graph, set(), found)
    return list(found.values())


def node_inputs(node: ir.Node) -> list[ir.Value]:
    """Return all that the node reads: its inputs and what its nested graphs capture, each once."""
    values = [value for value in node.inputs if value is not None]
    return list({id(value): value for value in (*values, *captured_values(node))}.values())


def constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute from weights alone, so that a copy in each partition gives the same values.

    Random nodes never count, nor does a node that makes an output of the model.
    """
    constant: set[ir.Node] = set()
    outputs = {id(value) for value in graph.outputs}
    for node in graph:
        fed = all(value.is_initializer() or value.producer() in constant for value in node_inputs(node))
        if fed and not ops.is_random(node) and not any(id(value) in outputs for value in node.outputs):
            constant.add(node)
    return constant


def _collect_captures(graph: ir.Graph, inner: set[int], found: dict[int, ir.Value]) -> None:
    inner = inner | {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        for value in node.inputs:
            if value is not None and id(value) not in inner:
                found[id(value)] = value
        for nested in ops.subgraphs(node):
            _collect_captures(nested, inner, found)
        inner.update(id(value) for value in node.outputs)
    for value in graph.outputs:
        if id(value) not in inner:
            found[id(value)] = value


@dataclass
class _Groups:
    """Disjoint groups of nodes whose quotient stays acyclic."""

    successors: list[set[int]]
    predecessors: list[set[int]]
    holds_pooling: list[bool]
    """Of each group, whether a node of it pools; so below."""
    holds_shard: list[bool]
    members: list[list[int]] = field(init=False)
    group: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.group = list(range(len(self.successors)))
        self.members = [[node] for node in self.group]

    def can_merge(self, first: int, second: int) -> bool:
        """Return whether no path leads from one group to the other through a third."""
        return not (self._indirect(first, second) or self._indirect(second, first))

    def merge(self, first: int, second: int) -> None:
        """Put the second group's nodes into the first."""
        for node in self.members[second]:
            self.group[node] = first
        self.members[first] = sorted(self.members[first] + self.members[second])
        self.members[second] = []
        self.holds_pooling[first] |= self.holds_pooling[second]
        self.holds_shard[first] |= self.holds_shard[second]
        for forward, backward in ((self.successors, self.predecessors), (self.predecessors, self.successors)):
            for other in forward[second]:
                backward[other].discard(second)
                if other != first:
                    backward[other].add(first)
                    forward[first].add(other)
            forward[first].discard(second)
            forward[second] = set()

    def _indirect(self, source: int, target: int) -> bool:
        limit = self.members[target][-1]
        stack = [group for group in self.successors[source] if group != target]
        seen = set(stack)
        while stack:
            group = stack.pop()
            if self.members[group][0] > limit:
                continue  # a path cannot come back to nodes before all of this group's
            for successor in self.successors[group]:
                if successor == target:
                    return True
                if successor not in seen and successor != source:
                    seen.add(successor)
                    stack.append(successor)
        return False


@dataclass(slots=True)
class _Block:
    """Memory that values of a layer have in turn, from the first to the last node that needs it."""

    nbytes: int
    first: int
    last: int


class _Builder:
    """One pass over a model; holds the lookups that the steps share."""

    def __init__(self, model: ir.Model, shapes: ops.Shapes, fused: frozenset[str], grouped: bool) -> None:
        self.graph = model.graph
        self.shapes = shapes
        self.fused = fused
        self.grouped = grouped
        self.constants = constant_nodes(model.graph)
        self.outputs = {id(value) for value in model.graph.outputs}
        self.nodes = [node for node in model.graph if node not in self.constants]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.reads = [self._variable_inputs(node) for node in self.nodes]
        self.readers: dict[int, list[int]] = {}
        for index, values in enumerate(self.reads):
            for value in values:
                self.readers.setdefault(id(value), []).append(index)

        self.cuts = [value for node in self.nodes for value in node.outputs if CUT in value.meta]
        weights = [w.const_value for w in model.graph.initializers.values() if w.const_value is not None]
        plain = all(is_plain(weight.dtype) for weight in weights)
        self.can_stream = plain and all(can_cross(value) for value in (*model.graph.inputs, *model.graph.outputs))
        """Whether every partition has a form, as far as types tell: tables are read by the row only there."""

    def build(self) -> CutGraph:
        order = self._ordered_groups(self._grouped_nodes())
        layer_of = {node: index for index, members in enumerate(order) for node in members}
        names: dict[str, int] = {}
        layers = tuple(self._layer(index, members, names) for index, members in enumerate(order))
        return CutGraph(layers, tuple(self._cut_values(layer_of)))

    def _variable_inputs(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in node_inputs(node) if not v.is_initializer() and v.producer() not in self.constants]

    def _grouped_nodes(self) -> list[list[int]]:
        groups = self._new_groups([{index} for index in range(len(self.nodes))])
        self._merge_inseparable(groups)
        groups = self._new_groups(self._acyclic([set(m) for m in groups.members if m]))
        if self.grouped:
            for rule in (self._merge_small, self._merge_preparations, self._merge_followers, self._merge_leading_views):
                rule(groups)
        return [members for members in groups.members if members]

    def _new_groups(self, partition: list[set[int]]) -> _Groups:
        group = {node: index for index, members in enumerate(partition) for node in members}
        size = len(self.nodes)
        groups = _Groups(
            [set() for _ in range(size)],
            [set() for _ in range(size)],
            [ops.is_pooling(node) for node in self.nodes],
            [SHARD in node.meta for node in self.nodes],
        )
        for index, values in enumerate(self.reads):
            for value in values:
                producer = self.position.get(value.producer())  # type: ignore[arg-type]  # None is simply absent
                if producer is not None:
                    groups.successors[producer].add(index)
                    groups.predecessors[index].add(producer)
        for members in partition:
            first, *rest = sorted(members)
            for node in rest:
                groups.merge(groups.group[first], groups.group[node])
        assert len(group) == size
        return groups

    def _merge_inseparable(self, groups: _Groups) -> None:
        """Values that cannot travel, or that a fusion does away with, tie their producer to their consumers."""
        shards: dict[Shard, int] = {}
        for index, node in enumerate(self.nodes):
            shard = node.meta.get(SHARD)
            if shard is not None:
                home = groups.group[shards.setdefault(shard, index)]
                if home != groups.group[index]:
                    groups.merge(home, groups.group[index])
            for value in node.outputs:
                if not can_cross(value) or (self.grouped and value.name in self.fused):
                    for reader in self.readers.get(id(value), ()):
                        if groups.group[reader] != groups.group[index]:
                            groups.merge(groups.group[index], groups.group[reader])

    def _acyclic(self, partition: list[set[int]]) -> list[set[int]]:
        """Merge the groups that need each other, so that the quotient is a DAG."""
        group = {node: index for index, members in enumerate(partition) for node in members}
        quotient: nx.DiGraph[int] = nx.DiGraph()
        quotient.add_nodes_from(range(len(partition)))
        for index, values in enumerate(self.reads):
            for value in values:
                producer = self.position.get(value.producer())  # type: ignore[arg-type]  # None is simply absent
                if producer is not None:
                    quotient.add_edge(group[producer], group[index])
        components = nx.strongly_connected_components(quotient)
        return [set().union(*(partition[member] for member in component)) for component in components]

    def _try_merge(self, groups: _Groups, first: int, second: int) -> bool:
        left, right = groups.group[first], groups.group[second]
        if left == right:
            return True
        if groups.holds_shard[left] or groups.holds_shard[right]:
            return False
        if self._reaches_over_cut(groups, left, right) or not groups.can_merge(left, right):
            return False
        groups.merge(left, right)
        return True

    def _reaches_over_cut(self, groups: _Groups, left: int, right: int) -> bool:
        for value in self.cuts:
            home = groups.group[self.position[value.producer()]]  # type: ignore[index]  # a cut value has a producer
            ends = {home, *(groups.group[reader] for reader in self.readers.get(id(value), ()))}
            if home in (left, right) and {left, right} <= ends:
                return True
        return False

    def _merge_small(self, groups: _Groups) -> None:
        """Shape arithmetic belongs with what it is for, so that its many tiny tensors do not cross."""
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            if all(self._is_small(value) for value in node.outputs) and not ops.is_random(node):
                for reader in self._readers(node):
                    if self._try_merge(groups, index, reader):
                        break

    def _merge_preparations(self, groups: _Groups) -> None:
        for index in reversed(range(len(self.nodes))):
            readers = self._readers(self.nodes[index])
            if self.nodes[index].op_type in ops.PREPARATIONS and len(readers) == 1:
                self._try_merge(groups, index, readers[0])

    def _merge_followers(self, groups: _Groups) -> None:
        """Views, activations, normalisations and element-wise sums go with the latest layer that feeds them.

        Nothing joins a pooling layer, so that the border behind it is the pooled feature map.
        """
        for index, node in enumerate(self.nodes):
            view = node.op_type in ops.VIEWS or (node.op_type in ops.PREPARATIONS and not self._readers(node))
            if not view and node.op_type not in _FOLLOWERS:
                continue
            producers = sorted({p for p in map(self._producer, self.reads[index]) if p is not None}, reverse=True)
            for producer in producers[:1] if view else producers:
                pools = groups.holds_pooling[groups.group[producer]]
                if not pools and self._try_merge(groups, producer, index):
                    break

    def _merge_leading_views(self, groups: _Groups) -> None:
        """A view that follows no layer (of an input, of a pooled map) goes with the one layer that reads it."""
        for index in reversed(range(len(self.nodes))):
            node, readers = self.nodes[index], self._readers(self.nodes[index])
            alone = len(groups.members[groups.group[index]]) == 1
            if node.op_type in ops.VIEWS and alone and len(readers) == 1:
                self._try_merge(groups, index, readers[0])

    def _producer(self, value: ir.Value) -> int | None:
        node = value.producer()
        return None if node is None else self.position.get(node)

    def _readers(self, node: ir.Node) -> list[int]:
        return sorted({reader for value in node.outputs for reader in self.readers.get(id(value), ())})

    def _is_small(self, value: ir.Value) -> bool:
        if value.is_graph_output() or value.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
            return False
        shape = self.shapes(value)
        size = _product(shape) if shape is not None else None
        return size is not None and size <= _SMALL_ELEMENTS

    def _ordered_groups(self, partition: list[list[int]]) -> list[list[int]]:
        """Return the groups in an order to run in, as near to the model's own as it can be."""
        group = {node: index for index, members in enumerate(partition) for node in members}
        quotient: nx.DiGraph[int] = nx.DiGraph()
        quotient.add_nodes_from(range(len(partition)))
        for index, values in enumerate(self.reads):
            for producer in map(self._producer, values):
                if producer is not None and group[producer] != group[index]:
                    quotient.add_edge(group[producer], group[index])
        order = nx.lexicographical_topological_sort(quotient, key=lambda g: partition[g][0])
        return [sorted(partition[index]) for index in order]

    def _layer(self, index: int, members: list[int], names: dict[str, int]) -> Layer:
        nodes = tuple(self.nodes[member] for member in members)
        constants, weights = self._constants_of(nodes)
        macs = [ops.macs(node, self.shapes) for node in nodes]
        shard = nodes[0].meta.get(SHARD)
        known = all(self.shapes(v) is not None for n in nodes for v in n.outputs if v.type is not None and can_cross(v))
        return Layer(
            index=index,
            name=_unique(_shard_name(shard) if shard else _layer_name(nodes, macs), names),
            kind=_kind(nodes),
            nodes=nodes,
            constants=constants,
            weights=weights,
            parameters=sum(w.const_value.size for w in weights if w.const_value is not None and is_parameter(w)),
            weight_bytes=sum(nbytes_of(weight) for weight in weights),
            macs=sum(macs) if known else None,
            downsampling=_downsampling(nodes),
            work_bytes=self._work_bytes(nodes),
            constant_bytes=sum(tensor_nbytes(v, self.shapes) or 0 for node in constants for v in node.outputs),
            shard=shard,
            tables=tuple(self._tables((*constants, *nodes))) if self.can_stream and any(map(is_table, weights)) else (),
        )

    def _tables(self, nodes: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Value, int]]:
        """Yield the weights of which the nodes only look up rows that the request names, and the bytes of these."""
        for found in find_look_ups(nodes, node_inputs, lambda value: value.is_graph_input()):
            shapes, table = [self.shapes(value) for value in found.indices], found.table.const_value
            if table is not None and None not in shapes:
                count = sum(_product(shape) for shape in shapes if shape is not None)
                yield found.table, rows_nbytes(table.nbytes, table.shape.numpy()[0], count)

    def _constants_of(self, nodes: tuple[ir.Node, ...]) -> tuple[tuple[ir.Node, ...], tuple[ir.Value, ...]]:
        needed: set[ir.Node] = set()
        weights: dict[str, ir.Value] = {}
        stack = list(nodes)
        while stack:
            for value in node_inputs(stack.pop()):
                producer = value.producer()
                if value.is_initializer():
                    weights[str(value.name)] = value
                elif producer in self.constants and producer not in needed:
                    needed.add(producer)
                    stack.append(producer)
        ordered = tuple(node for node in self.graph if node in needed) if needed else ()
        return ordered, tuple(weights[name] for name in sorted(weights))

    def _work_bytes(self, nodes: tuple[ir.Node, ...]) -> int:
        """Return the most bytes alive at once of what the nodes make and what running them takes, in their order."""
        changes = [0] * (len(nodes) + 2)
        for block in self._blocks(nodes):
            changes[block.first] += block.nbytes
            changes[block.last + 1] -= block.nbytes
        alive = peak = 0
        for node, change in zip(nodes, changes, strict=False):
            alive += change
            peak = max(peak, alive + workspace_bytes(node, self.shapes))
        return peak

    def _blocks(self, nodes: tuple[ir.Node, ...]) -> list[_Block]:
        """Return the memory of what the nodes make; a value that takes over another one's has none of its own.

        What is used outside the nodes may be an output of their partition, which is always memory of its own.
        """
        inside = set(nodes)
        last = {id(v): n for n, node in enumerate(nodes) for v in self.reads[self.position[node]]}
        blocks: list[_Block] = []
        home: dict[int, _Block] = {}
        for step, node in enumerate(nodes):
            source = self._overwritten(node, step, last, home)
            for index, value in enumerate(node.outputs):
                leaves = value.is_graph_output() or any(
                    self.nodes[r] not in inside for r in self.readers.get(id(value), ())
                )
                end = len(nodes) if leaves else last.get(id(value), step)
                if index == 0 and source is not None and not leaves:
                    source.last = max(source.last, end)
                    home[id(value)] = source
                    continue
                block = _Block(tensor_nbytes(value, self.shapes) or 0, step, end)
                blocks.append(block)
                if not leaves:
                    home[id(value)] = block
        return blocks

    def _overwritten(
        self, node: ir.Node, step: int, last: Mapping[int, int], home: Mapping[int, _Block]
    ) -> _Block | None:
        """Return the block that the node's first output takes over, or shares because it only has another shape."""
        index = overwritten_input(node, self.shapes)
        value = None if index is None else node.inputs[index]
        block = None if value is None else home.get(id(value))
        if block is None or node.op_type in ALIASES:
            return block
        is_free = last.get(id(value)) == step == block.last
        return block if is_free and block.nbytes == tensor_nbytes(node.outputs[0], self.shapes) else None

    def _cut_values(self, layer_of: dict[int, int]) -> Iterator[CutValue]:
        for value in self.graph.inputs:
            yield self._cut_value(value, MODEL, layer_of)
        for index in sorted(layer_of, key=lambda node: (layer_of[node], node)):
            for value in sorted(self.nodes[index].outputs, key=lambda value: str(value.name)):
                cut = self._cut_value(value, layer_of[index], layer_of)
                if cut.is_output or cut.consumers:
                    yield cut

    def _cut_value(self, value: ir.Value, producer: int, layer_of: dict[int, int]) -> CutValue:
        consumers = {layer_of[reader] for reader in self.readers.get(id(value), ())} - {producer}
        return CutValue(
            name=str(value.name),
            value=value,
            nbytes=tensor_nbytes(value, self.shapes),
            producer=producer,
            consumers=tuple(sorted(consumers)),
            is_output=id(value) in self.outputs,
            can_cross=can_cross(value),
        )


def tensor_nbytes(value: ir.Value, shapes: Callable[[ir.Value], tuple[int, ...] | None]) -> int | None:
    """Return the bytes of a tensor at its known sizes; None where they, or its dtype's width, are unknown."""
    shape = shapes(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return None
    return -(-_product(shape) * value.dtype.bitwidth // 8)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _downsampling(nodes: tuple[ir.Node, ...]) -> str | None:
    for node in nodes:
        if ops.is_pooling(node):
            return ops.POOLING[node.op_type]
    return ops.STRIDED_CONVOLUTION if any(map(ops.is_strided_convolution, nodes)) else None


def _kind(nodes: tuple[ir.Node, ...]) -> str:
    told = [n.op_type for n in nodes if n.op_type not in ops.VIEWS and n.op_type not in ops.PREPARATIONS]
    return "+".join(dict.fromkeys(told or [node.op_type for node in nodes]))


def _layer_name(nodes: tuple[ir.Node, ...], macs: list[int]) -> str:
    """Return the name of the node that computes most, the first pooling node, or the first; else its first output's."""
    heavy = max(range(len(nodes)), key=lambda index: (macs[index], ops.is_pooling(nodes[index]), -index))
    return str(nodes[heavy].name or "").removeprefix(_FUSED_PREFIX) or str(nodes[heavy].outputs[0].name)


def _shard_name(shard: Shard) -> str:
    return f"{shard.layer}[{shard.index + 1}/{shard.count}]"


def _unique(name: str, taken: dict[str, int]) -> str:
    count = taken[name] = taken.get(name, 0) + 1
    return name if count == 1 else _unique(f"{name}~{count}", taken)
