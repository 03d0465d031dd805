"""Lanes through the runner that uses them: third request of the same shapes on."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from hyps.adapters.lanes import spec_of
from hyps.formats.plan import TensorInfo
from hyps.local import LocalRunner
from plan_fixtures import Dataflow, Piece, cnn, mlp, sharded

Answer = dict[str, NDArray[np.generic]]


def test_every_request_on_a_lane_is_answered_as_the_whole_model_answers_it(tmp_path: Path) -> None:
    for flow in (mlp(8, 16, 12, 4), cnn(), sharded()):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        flow.write(folder)
        whole = onnxruntime.InferenceSession(flow.whole())
        with LocalRunner(folder) as runner:
            for seed in range(6):
                feeds = flow.feeds(seed)
                expected = whole.run(None, feeds)
                for value, name in zip(expected, flow.outputs, strict=True):
                    np.testing.assert_allclose(runner.run(feeds)[name], value, rtol=1e-5, atol=1e-6)


def test_an_answer_is_the_callers_own(tmp_path: Path) -> None:
    flow = cnn()
    flow.write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan") as runner:
        for _ in range(3):
            runner.run(flow.feeds(0))
        kept = runner.run(flow.feeds(1))["y"]
        before = kept.copy()
        feeds = flow.feeds(2)
        fed = feeds["x"].copy()

        runner.run(feeds)

        np.testing.assert_array_equal(kept, before)
        np.testing.assert_array_equal(feeds["x"], fed)


def test_requests_of_changing_shapes_are_answered(tmp_path: Path) -> None:
    flow = mlp(8, 16, 12, 4)
    flow.write(tmp_path / "plan")
    whole = onnxruntime.InferenceSession(flow.whole())
    with LocalRunner(tmp_path / "plan") as runner:
        for batch in (1, 1, 1, 3, 3, 3, 1, 5, 3, 3):
            feeds = flow.feeds(batch, batch=batch)
            np.testing.assert_allclose(runner.run(feeds)["t3"], whole.run(None, feeds)[0], rtol=1e-5, atol=1e-6)


def test_a_shape_that_depends_on_the_data_goes_the_ordinary_way(tmp_path: Path) -> None:
    flow = _positives()
    flow.write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan") as runner:
        for values in ([1, 2, -3, 4], [1, 2, -3, 4], [1, 2, -3, 4], [1, -2, -3, -4], [1, 2, 3, 4], [-1, -1, -1, -1]):
            answer = runner.run({"x": np.array(values, np.float32)})["y"]
            np.testing.assert_array_equal(answer, 2 * np.flatnonzero(np.array(values) > 0)[np.newaxis])


def test_requests_from_several_threads_never_mix(tmp_path: Path) -> None:
    flow = mlp(64, 64, 64, 64, 64, 8)
    flow.write(tmp_path / "plan")
    whole = onnxruntime.InferenceSession(flow.whole())
    wrong: list[int] = []
    with LocalRunner(tmp_path / "plan", threads=1) as runner:

        def ask(seed: int) -> None:
            feeds = flow.feeds(seed)
            expected = whole.run(None, feeds)[0]
            answers = [runner.run(feeds)["t5"] for _ in range(50)]
            wrong.extend(seed for answer in answers if not np.allclose(answer, expected, rtol=1e-5, atol=1e-6))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert wrong == []


def test_text_and_empty_tensors_cannot_lie_in_a_lane() -> None:
    assert spec_of(np.array(["a"], object)) is None
    assert spec_of(np.zeros((0, 3), np.float32)) is None
    assert spec_of([np.zeros(3)]) is None
    spec = spec_of(np.zeros((2, 3), np.float16))
    assert spec is not None
    assert (spec.shape, spec.nbytes) == ((2, 3), 12)


def _positives() -> Dataflow:
    """Return two partitions: where an input is above zero, and twice those places."""
    two: Answer = {"two": np.array(2, np.int64)}
    zero: Answer = {"zero": np.array(0, np.float32)}
    pieces = [
        Piece(
            "find",
            [helper.make_node("Greater", ["x", "zero"], ["above"]), helper.make_node("NonZero", ["above"], ["places"])],
            zero,
            ("x",),
            ("places",),
        ),
        Piece("double", [helper.make_node("Mul", ["places", "two"], ["y"])], two, ("places",), ("y",)),
    ]
    tensors = {
        "x": TensorInfo(dtype="float32", shape=(4,), nbytes=16),
        "places": TensorInfo(dtype="int64", shape=(1, None)),
        "y": TensorInfo(dtype="int64", shape=(1, None)),
    }
    return Dataflow(pieces, tensors, ("x",), ("y",))
