"""A transformer's blocks divided whole: heads, the feed-forward pair, columns, sequences, the word table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_compiler.irfile import save_model
from hyps_compiler.measure import measure
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from hyps_models.transformer import build_encoder_small, sample_tokens
from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.layers import SHARD, build_cut_graph
from hyps_passes.rewrites.divide_table import TableLayer, find_table

Array = np.ndarray[Any, Any]
Level = Literal["none", "portable"]
_LAYER = "encoder.layer.1"


@dataclass(frozen=True)
class _Encoder:
    """The staged model, its sizes, a request and its answer."""

    model: ir.Model
    folder: Path
    sizes: dict[str, tuple[int, ...]]
    feeds: dict[str, Array]
    answer: tuple[Array, ...]

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """Return the nodes between two, both of which are meant by how their names begin."""
        names = [str(node.name) for node in self.model.graph]
        start = next(index for index, name in enumerate(names) if name.startswith(first))
        stop = max(index for index, name in enumerate(names) if name.startswith(last))
        return tuple(names[start : stop + 1])

    def run(self, model: ir.Model) -> list[Array]:
        path = self.folder / "divided.onnx"
        save_model(model, path)
        return _run(path, self.feeds)

    def check(self, model: ir.Model, tolerance: float = 1e-5) -> None:
        for made, expected in zip(self.run(model), self.answer, strict=True):
            np.testing.assert_allclose(made, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


@pytest.fixture(scope="module", params=["none", "portable"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Encoder:
    level: Level = request.param
    folder = tmp_path_factory.mktemp(level)
    source, staging = folder / "model.onnx", folder / "staged"
    onnx.save(build_encoder_small(11), source)
    staging.mkdir()
    staged = stage_model(open_source(source), staging, level)
    feeds = sample_tokens(np.random.default_rng(5), 2)
    sizes = measure(staged.model, staged.path, shapes={}, feeds=feeds).sizes
    return _Encoder(staged.model, staging, sizes, feeds, tuple(_run(staged.path, feeds)))


def _divided(encoder: _Encoder, region: Region, count: int) -> ir.Model:
    model, sizes = encoder.model.clone(), dict(encoder.sizes)
    Divide(region, count).apply(model, sizes)
    return model


def _held(model: ir.Model, encoder: _Encoder) -> list[int]:
    """Return the parameters of each piece."""
    graph = build_cut_graph(model, encoder.sizes)
    return [layer.parameters for layer in graph.layers if layer.shard is not None]


def test_attention_by_heads_needs_one_merge_behind_its_projection(encoder: _Encoder) -> None:
    name = f"{_LAYER}.attention"
    region = Region("heads", encoder.between(f"{name}.query", f"{name}.project.matmul"), None)
    found = extent(encoder.model, region, encoder.sizes)
    assert (found.size, found.most) == (128, 2)

    model = _divided(encoder, region, 2)

    merges = [node for node in model.graph if node.op_type in ("Sum", "Concat")]
    assert [node.op_type for node in merges] == ["Sum"]
    whole = 4 * 128 * 128 + 3 * 128
    assert all(abs(parameters - whole // 2) < 10 for parameters in _held(model, encoder))
    encoder.check(model)


def test_the_heads_themselves_are_put_side_by_side(encoder: _Encoder) -> None:
    name = f"{_LAYER}.attention"
    inside = encoder.between(f"{name}.query", f"{name}.softmax")
    region = Region("scores", (*inside, f"{name}.context"), -3)

    model = _divided(encoder, region, 2)

    assert [node.op_type for node in model.graph if node.op_type in ("Sum", "Concat")] == ["Concat"]
    encoder.check(model)


def test_sequences_of_an_open_length_are_refused(encoder: _Encoder) -> None:
    name = f"{_LAYER}.attention"
    inside = encoder.between(f"{name}.query", f"{name}.softmax")

    with pytest.raises(IndivisibleError, match="--input"):
        extent(encoder.model, Region("scores", (*inside, f"{name}.context"), -2), encoder.sizes)


@settings(max_examples=6, deadline=None)
@given(count=st.sampled_from([2, 3, 5, 11, 32]))
def test_two_dense_layers_in_a_row_need_one_merge(encoder: _Encoder, count: int) -> None:
    name = f"{_LAYER}.feed_forward"
    region = Region("pair", encoder.between(f"{name}.expand", f"{name}.contract.matmul"), None)
    assert extent(encoder.model, region, encoder.sizes).most == 512

    model = _divided(encoder, region, count)

    assert [node.op_type for node in model.graph if node.op_type in ("Sum", "Concat")] == ["Sum"]
    most = -(-512 // count) * (2 * 128 + 1)
    assert max(_held(model, encoder)) <= most + 4, "rows of one matrix, columns of the other, a bias; a few scalars"
    encoder.check(model)


@settings(max_examples=6, deadline=None)
@given(count=st.integers(2, 20))
def test_projections_are_divided_by_columns(encoder: _Encoder, count: int) -> None:
    name = f"{_LAYER}.attention.query"
    region = Region("columns", encoder.between(f"{name}.matmul", f"{name}.add_bias"), -1)

    encoder.check(_divided(encoder, region, count))


@settings(max_examples=6, deadline=None)
@given(count=st.integers(2, 40), carry=st.booleans())
def test_the_word_table_is_divided_by_rows(encoder: _Encoder, count: int, carry: bool) -> None:
    model, sizes = encoder.model.clone(), dict(encoder.sizes)
    layers = build_cut_graph(model, sizes).layers
    layer = next(layer for layer in layers if any(node.name == "embeddings.word" for node in layer.nodes))
    table = find_table(model, layer, sizes)
    assert isinstance(table, TableLayer)
    assert (table.node, table.rows, table.grain) == ("embeddings.word", 30522, 1)

    table.rewrite(count, carry=carry).apply(model, sizes)

    encoder.check(model, tolerance=0)
    assert max(_held(model, encoder)) <= -(-30522 // count) * 128 + 1


@settings(max_examples=4, deadline=None)
@given(count=st.integers(2, 32))
def test_the_word_table_is_divided_by_columns(encoder: _Encoder, count: int) -> None:
    encoder.check(_divided(encoder, Region("words", ("embeddings.word",), -1), count), tolerance=0)


def test_pieces_carry_what_they_are(encoder: _Encoder) -> None:
    name = f"{_LAYER}.feed_forward"
    region = Region("pair", encoder.between(f"{name}.expand", f"{name}.contract.matmul"), None)

    model = _divided(encoder, region, 2)

    shards = sorted({node.meta[SHARD] for node in model.graph if SHARD in node.meta}, key=lambda shard: shard.index)
    assert [shard.range for shard in shards] == [(0, 256), (256, 512)]
    assert {(shard.layer, shard.merge, shard.count) for shard in shards} == {("pair", "sum", 2)}
