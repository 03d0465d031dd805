"""The experiment on predictions cuts models as devices get them, and judges by what was measured."""

from pathlib import Path

import numpy as np

import hyps_models
from hyps.local import LocalRunner
from truth.clusters import PAIRS
from truth.measuring import Samples
from truth.outcome import PRODUCT, REQUESTS, Case, result
from truth.plans import Model, read_model, write_empty, write_sides
from truth.predicting import Prediction


def test_both_sides_of_a_cut_compute_what_the_whole_does(tmp_path: Path) -> None:
    model = _digits(tmp_path)
    feeds = hyps_models.sample_inputs("digits")
    everything = tuple(layer.index for layer in model.graph.layers)
    whole = write_sides(model, everything, tmp_path / "whole")
    parts = write_sides(model, everything[:2], tmp_path / "parts")

    assert whole.tail is None
    assert whole.head is not None
    assert parts.head is not None
    assert parts.tail is not None
    with LocalRunner(whole.head) as runner, LocalRunner(parts.head) as head, LocalRunner(parts.tail) as tail:
        expected, made = runner.run(feeds), head.run(feeds)
        answer = tail.run(made)

    assert list(answer) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


def test_a_cut_with_nothing_on_the_device_has_no_head(tmp_path: Path) -> None:
    sides = write_sides(_digits(tmp_path), (), tmp_path / "none")

    assert sides.head is None
    assert sides.tail is not None


def test_the_empty_plan_hands_back_its_number(tmp_path: Path) -> None:
    with LocalRunner(write_empty(tmp_path / "empty")) as runner:
        assert runner.run({"x": np.array([7], np.float32)})["y"].tolist() == [7]


def test_error_and_regret_are_those_of_the_medians(tmp_path: Path) -> None:
    case = Case(_digits(tmp_path), PAIRS["camera"], {"local": (0, 1), "remote": ()})
    case.samples = {"local": Samples([90, 100, 900], [90, 100, 900]), "remote": Samples([80, 80, 80], [0, 0, 0])}
    for name, (local_us, remote_us) in {PRODUCT: (110, 120), REQUESTS: (100, 80)}.items():
        case.forecasts[name].add({"local": _told(local_us), "remote": _told(remote_us)})
        case.forecasts[name].chosen.append("local" if local_us < remote_us else "remote")

    told = result(case)["forecasts"]

    assert round(told[PRODUCT]["median_error"], 9) == 0.3, "10 % and 50 %"
    assert round(told[PRODUCT]["regret"], 9) == 0.25
    assert round(told[REQUESTS]["median_error"], 9) == 0
    assert told[REQUESTS]["regret"] == 0


def _digits(folder: Path) -> Model:
    (folder / "model").mkdir()
    return read_model("digits", folder / "model")


def _told(latency_us: float) -> Prediction:
    return Prediction(latency_us / 1e6, 0.0, 0.0)
