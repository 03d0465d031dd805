"""Opens the pieces of a divided region: each becomes several H-partitions, which need not be held together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes.claims import read_claims
from hyps_passes.layers import SHARD


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of the region whose pieces stay together."""

    name: str
    nodes: tuple[str, ...]
    """Names of the nodes before the division."""


@dataclass(frozen=True, slots=True)
class OpenPieces:
    """Has the nodes of each piece of a region run group after group, the pieces one after another as before.

    It applies to what `Divide` made of a region of layers along an axis, where

    1. the groups are consecutive nodes of the region, in running order, and hold all of them;
    2. what cuts a part out goes with what needs it, and what is handed on to the next piece with what made it.
    """

    region: str
    groups: tuple[Group, ...]

    name = "open"

    def __str__(self) -> str:
        return f"{self.name}{{region={self.region},groups={len(self.groups)}}}"

    def apply(self, model: ir.Model) -> None:
        """Give the nodes of each piece new H-partitions, in place."""
        made: dict[tuple[int, int], list[ir.Node]] = {}
        for piece, nodes in self._pieces(model):
            for node, at in self._placed(piece, nodes).items():
                made.setdefault((at, piece.index), []).append(node)
        for number, group in enumerate(self.groups):
            pieces = sorted(index for at, index in made if at == number)
            for index, piece_index in enumerate(pieces):
                nodes = made[number, piece_index]
                shard = nodes[0].meta[SHARD]
                span = _span(nodes, group, shard) or shard.range
                opened = Shard(layer=group.name, axis=shard.axis, index=index, count=len(pieces), range=span)
                for node in nodes:
                    node.meta[SHARD] = opened

    def _pieces(self, model: ir.Model) -> Iterator[tuple[Shard, list[ir.Node]]]:
        found: dict[Shard, list[ir.Node]] = {}
        for node in model.graph:
            shard = node.meta.get(SHARD)
            if shard is not None and shard.layer == self.region:
                found.setdefault(shard, []).append(node)
        yield from found.items()

    def _placed(self, piece: Shard, nodes: Sequence[ir.Node]) -> dict[ir.Node, int]:
        """Return the group of each node of a piece."""
        suffix = f".{piece.index}of{piece.count}"
        group_of = {f"{name}{suffix}": index for index, group in enumerate(self.groups) for name in group.nodes}
        placed = {node: group_of[_plain(node)] for node in nodes if _plain(node) in group_of}
        others = [node for node in nodes if node not in placed]
        for node in reversed(others):  # 2.
            users = [placed[use.node] for value in node.outputs for use in value.uses() if use.node in placed]
            if users:
                placed[node] = min(users)
        for node in others:
            if node not in placed:
                makers = [value.producer() for value in node.inputs if value is not None]
                placed[node] = max((placed[m] for m in makers if m is not None and m in placed), default=0)
        return placed


def _span(nodes: Sequence[ir.Node], group: Group, piece: Shard) -> tuple[int, int] | None:
    """Return which part of its layer's output a piece makes; None where its nodes do not tell."""
    names = {f"{name}.{piece.index}of{piece.count}" for name in group.nodes}
    for node in reversed(nodes):
        claims = [claim for claim in read_claims(node.metadata_props).values() if claim.axis is not None]
        if claims and _plain(node) in names:
            return claims[0].start, claims[0].stop
    return None


def _plain(node: ir.Node) -> str:
    return str(node.name).rstrip("~")
