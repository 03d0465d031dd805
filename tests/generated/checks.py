"""What must hold of every cut of a generated model: in the files, and of what they compute."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

from cut_fixtures import Cut, plain_session
from generated.answers import answer_of, gap, is_equal
from generated.grown import Grown
from hyps.adapters.sessions import ORT_ERRORS
from model_fixtures import passes_checker

HALF_TOLERANCE = 1e-2
"""Of what is made of half floats where onnxruntime computes the whole in float32, and a border rounds."""


def check_cut(cut: Cut, grown: Grown, path: Path) -> None:
    """Check all that can be seen in the files, then what they compute."""
    files = [onnx.load(cut.folder / part.file, load_external_data=False) for part in cut.partitions]
    staged = onnx.load(cut.staged.path, load_external_data=False)
    check_cover(staged.graph, [file.graph for file in files])
    check_dataflow(cut, [file.graph for file in files], staged.graph)
    check_weights(cut, files)
    for part, file in zip(cut.partitions, files, strict=True) if passes_checker(grown.model) else ():
        if has_ranks(file.graph):
            onnx.checker.check_model(str(cut.folder / part.file), full_check=True)
    check_answers(cut, grown, path)


def check_cover(whole: GraphProto, parts: Sequence[GraphProto]) -> None:
    """Every node is in one partition; those that compute from weights alone in each that needs them."""
    constants = constant_outputs(whole)
    nodes = {output_name(node): node for node in whole.node}
    found = Counter(output_name(node) for part in parts for node in part.node)
    assert set(found) <= set(nodes)
    assert all(found[name] == 1 for name in nodes if name not in constants)
    for part in parts:
        read = {name for node in part.node for name in reads(node)} | {value.name for value in part.output}
        assert all(read & set(node.output) for node in part.node if output_name(node) in constants)
        assert all(nodes[output_name(node)].op_type == node.op_type for node in part.node)


def check_dataflow(cut: Cut, parts: Sequence[GraphProto], whole: GraphProto) -> None:
    """A partition takes just what it reads and gives just what others read, and what it takes was made before it."""
    wanted = {value.name for value in whole.output}
    known = {value.name for value in whole.input}
    constants = constant_outputs(whole)
    all_reads = [{name for node in part.node for name in reads(node)} for part in parts]
    for index, (part, plan) in enumerate(zip(parts, cut.partitions, strict=True)):
        made = {name for node in part.node for name in node.output if name}
        weights = {tensor.name for tensor in part.initializer}
        elsewhere = set().union(*(names for other, names in enumerate(all_reads) if other != index)) | wanted
        local = {name for node in part.node if output_name(node) in constants for name in node.output}
        assert set(plan.inputs) == all_reads[index] - made - weights
        assert set(plan.outputs) == (made & elsewhere) - (local - wanted)
        assert set(plan.inputs) <= known
        assert not set(plan.outputs) & known
        assert [value.name for value in part.input] == list(plan.inputs)
        assert weights <= all_reads[index]
        known.update(plan.outputs)
    assert wanted <= known


def check_weights(cut: Cut, files: Sequence[ModelProto]) -> None:
    """Each partition has its own weights and no others, bit for bit; together they are the model's."""
    whole = onnx.load(cut.staged.path)
    values = {tensor.name: tensor for tensor in whole.graph.initializer}
    found: dict[str, Any] = {}
    for file, part in zip(files, cut.partitions, strict=True):
        loaded = onnx.load(cut.folder / part.file)
        mine = {tensor.name: tensor for tensor in loaded.graph.initializer}
        assert {tensor.name for tensor in file.graph.initializer} == set(mine)
        found.update(mine)
    assert set(found) == set(values)
    for name, tensor in values.items():
        assert (found[name].data_type, list(found[name].dims)) == (tensor.data_type, list(tensor.dims)), name
        assert is_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(found[name])), name


def check_answers(cut: Cut, grown: Grown, path: Path, tolerance: float = 0.0) -> None:
    """The partitions compute what the whole computes, for other sizes too, and their shapes stay open."""
    runs = []
    for batch, feeds in requests(grown, path):
        expected, actual = answer_of(path, feeds), cut.run(feeds)
        for name, value in expected.items():
            allowed = max(tolerance, HALF_TOLERANCE if name in grown.rounded else 0.0)
            same = gap(value, actual[name]) <= allowed if allowed else is_equal(value, actual[name])
            assert same, (name, batch)
        runs.append(actual)
    check_open_dims(cut, runs)


def requests(grown: Grown, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield requests of two sizes where the model is open, and of no rows where onnxruntime runs such a one."""
    yield 2, grown.feeds(2)
    if not grown.is_open:
        return
    yield 3, grown.feeds(3)
    if grown.needs_rows:
        return
    try:
        answer_of(path, grown.feeds(0))
    except ORT_ERRORS:
        return
    yield 0, grown.feeds(0)


def check_open_dims(cut: Cut, runs: Sequence[dict[str, Any]]) -> None:
    """No partition declares a size that a request has changed."""
    for part in cut.partitions if len(runs) > 1 else ():
        session = plain_session(cut.folder / part.file)
        for info in (*session.get_inputs(), *session.get_outputs()):
            shapes = {run[info.name].shape for run in runs if hasattr(run[info.name], "shape")}
            if not info.shape:
                continue
            assert {len(shape) for shape in shapes} <= {len(info.shape)}, info.name
            for axis, dim in enumerate(info.shape):
                assert not isinstance(dim, int) or {shape[axis] for shape in shapes} <= {dim}, info.name


def has_ranks(graph: GraphProto) -> bool:
    """Return whether all ranks are known; some depend on the request, which ONNX has no words for."""
    values = [value for value in (*graph.input, *graph.output) if value.type.HasField("tensor_type")]
    return all(value.type.tensor_type.HasField("shape") for value in values)


def output_name(node: NodeProto) -> str:
    """Return the first name that the node makes."""
    return next(name for name in node.output if name)


def reads(node: NodeProto) -> set[str]:
    """Return all outer names that the node reads, nested graphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= free_names(attribute.g)
    return names


def free_names(graph: GraphProto) -> set[str]:
    """Return the names that a nested graph reads and does not make."""
    bound = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    free: set[str] = set()
    for node in graph.node:
        free |= reads(node) - bound
        bound |= set(node.output)
    return free | ({value.name for value in graph.output} - bound)


def constant_outputs(graph: GraphProto) -> set[str]:
    """Return the first output names of nodes that compute from weights alone."""
    fixed = {tensor.name for tensor in graph.initializer}
    wanted = {value.name for value in graph.output}
    found = set()
    for node in graph.node:
        if reads(node) <= fixed and not set(node.output) & wanted:
            fixed |= set(node.output)
            found.add(output_name(node))
    return found
