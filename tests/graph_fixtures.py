"""Cut graphs without models: random layers, weights and values, for tests of searches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer


def weight(name: str, count: int) -> ir.Value:
    """Return a weight of so many floats."""
    tensor = ir.Tensor(np.zeros(count, dtype=np.float32), name=name)
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)


def layer(
    index: int,
    weights: Sequence[ir.Value] = (),
    work_bytes: int = 0,
    downsampling: str | None = None,
    constant_bytes: int = 0,
) -> Layer:
    """Return a layer that holds the weights."""
    sizes = [w.const_value.size for w in weights if w.const_value is not None]
    return Layer(
        index=index,
        name=f"layer{index}",
        kind="Made",
        nodes=(),
        constants=(),
        weights=tuple(weights),
        parameters=sum(sizes),
        weight_bytes=4 * sum(sizes),
        macs=0,
        downsampling=downsampling,
        work_bytes=work_bytes,
        constant_bytes=constant_bytes,
    )


def value(
    name: str,
    producer: int,
    consumers: Sequence[int],
    nbytes: int | None,
    *,
    is_output: bool = False,
    crosses: bool = True,
) -> CutValue:
    """Return a value between layers."""
    return CutValue(name, ir.Value(name=name), nbytes, producer, tuple(sorted(consumers)), is_output, crosses)


@st.composite
def cut_graphs(draw: st.DrawFn, *, most_layers: int = 7, all_cross: bool = False) -> CutGraph:
    """Draw a graph of a few layers: tied weights, values used far down, values that cannot travel."""
    count = draw(st.integers(1, most_layers))
    pool = [weight(f"w{index}", draw(st.integers(1, 20))) for index in range(draw(st.integers(0, 5)))]
    layers = []
    for index in range(count):
        own = [w for w in pool if draw(st.booleans())] + [weight(f"own{index}", draw(st.integers(1, 40)))]
        layers.append(layer(index, own, draw(st.integers(0, 60)), constant_bytes=draw(st.integers(0, 9))))
    values = []
    for producer in range(MODEL, count):
        for number in range(draw(st.integers(1, 2))):
            later = st.integers(producer + 1, count - 1)
            consumers = draw(st.sets(later, max_size=3)) if producer < count - 1 else set()
            is_output = producer != MODEL and (not consumers or draw(st.integers(0, 4)) == 0)
            crosses = all_cross or producer == MODEL or draw(st.integers(0, 5)) > 0
            made = value(
                f"v{producer}.{number}",
                producer,
                sorted(consumers),
                draw(st.integers(0, 50)),
                is_output=is_output,
                crosses=crosses,
            )
            values.append(made)
    return CutGraph(tuple(layers), tuple(values))


@dataclass(frozen=True)
class Figures:
    """A window's figures, by their definition."""

    parameters: int
    weight_bytes: int
    peak_bytes: int


def figures(graph: CutGraph, first: int, last: int) -> Figures:
    """Return the figures of layers `first` to `last`, reckoned the slow way."""
    inside = graph.layers[first : last + 1]
    weights = {w.name: w.const_value.size for one in inside for w in one.weights if w.const_value is not None}
    activations = max(_alive(graph, first, index) for index in range(first, last + 1))
    return Figures(sum(weights.values()), 4 * sum(weights.values()), 4 * sum(weights.values()) + activations)


def _alive(graph: CutGraph, first: int, index: int) -> int:
    """Return the bytes alive while layer `index` runs in a partition that begins with layer `first`."""
    total = 0
    for v in graph.values:
        begins = max(v.producer, 0)
        ends = len(graph.layers) - 1 if v.is_output else v.consumers[-1] if v.consumers else v.producer
        is_fed = v.producer < first and any(first <= consumer < index for consumer in v.consumers)
        if begins <= index <= ends or (is_fed and begins <= index):
            total += v.nbytes or 0
    made = sum(v.nbytes or 0 for v in graph.values if v.producer == index)
    return total + max(0, graph.layers[index].work_bytes - made) + graph.layers[index].constant_bytes
