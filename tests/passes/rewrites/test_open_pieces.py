"""Pieces that are opened run group after group, and say which part of each group's output they make."""

import numpy as np

from engine_fixtures import Net, prepared, sizes_of
from hyps_passes.division.engine import Divide
from hyps_passes.division.region import Region
from hyps_passes.layers import SHARD
from hyps_passes.rewrites.open_pieces import Group, OpenPieces


def test_what_is_cut_to_size_stays_with_the_node_that_made_too_much() -> None:
    net = Net({"x": (1, 2, 8, 8)})
    value = net.add("Conv", "x", net.weight(2, 2, 3, 3), pads=[1] * 4)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    value = net.add("Resize", value, "", scales, mode="linear")
    value = net.add("Conv", value, net.weight(2, 2, 3, 3), pads=[1] * 4)
    model = prepared(net.proto(value))
    sizes = sizes_of(model)
    Divide(Region("net", ("n0", "n1", "n2"), -2), 2).apply(model, sizes)
    OpenPieces("net", (Group("up", ("n0", "n1")), Group("last", ("n2",)))).apply(model)
    told = {(s.layer, s.index): s.range for node in model.graph if (s := node.meta.get(SHARD)) is not None}
    assert told == {("up", 0): (0, 9), ("up", 1): (7, 16), ("last", 0): (0, 8), ("last", 1): (8, 16)}
    cut = next(node for node in model.graph if node.name == "n1.0of2")
    assert cut.op_type == "Slice"
    assert cut.meta[SHARD].layer == "up"
