"""The model of time finds the coefficients that made the data, and says how far off it is where there are none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.formats.profiles import KindModel
from hyps_passes.time_model import Work, fit_time_model, least_squares, modelled_s


def _works(kind: str, fixed_s: float, per_mac_s: float, per_byte_s: float, count: int = 12) -> list[Work]:
    rng = np.random.default_rng(count)
    macs, nbytes = rng.integers(10**5, 10**9, count), rng.integers(10**3, 10**7, count)
    return [
        Work(kind, float(m), float(b), fixed_s + per_mac_s * float(m) + per_byte_s * float(b))
        for m, b in zip(macs, nbytes, strict=True)
    ]


def test_known_coefficients_are_found_for_each_kind() -> None:
    model = fit_time_model([*_works("Conv+Relu", 2e-5, 1e-11, 3e-10), *_works("Gemm", 5e-6, 0.0, 1e-10)])

    conv, gemm = model.kinds["Conv"], model.kinds["Gemm"]
    assert (conv.fixed_s, conv.per_mac_s, conv.per_byte_s) == pytest.approx((2e-5, 1e-11, 3e-10), rel=1e-3)
    assert (gemm.fixed_s, gemm.per_mac_s, gemm.per_byte_s) == pytest.approx((5e-6, 0.0, 1e-10), rel=1e-3, abs=1e-16)
    assert model.error == pytest.approx(0.0, abs=1e-3)


def test_what_is_noise_is_told_as_error() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        Work(w.kind, w.macs, w.nbytes, w.seconds * float(rng.choice([0.8, 1.2])))
        for w in _works("Conv", 2e-5, 1e-11, 0)
    ]

    error = fit_time_model(noisy).error

    assert error is not None
    assert 0.1 < error < 0.4


def test_a_kind_seen_rarely_is_told_by_all_kinds_together() -> None:
    model = fit_time_model([*_works("Conv", 1e-5, 1e-11, 0.0), Work("Softmax", 0.0, 100.0, 1e-5)])

    assert set(model.kinds) == {"", "Conv"}
    assert modelled_s(model.kinds, Work("Softmax", 0.0, 100.0)) == pytest.approx(1e-5, rel=0.5)


def test_without_layers_there_is_a_model_of_nothing() -> None:
    model = fit_time_model([])

    assert model.kinds == {"": KindModel(fixed_s=0.0, per_mac_s=0.0, per_byte_s=0.0, layers=0)}
    assert (model.error, model.export_s_per_byte) == (None, 0.0)


def test_borders_cost_by_their_bytes() -> None:
    model = fit_time_model([], exports=[(100, 0.1), (300, 0.3)], imports=[(100, 0.0), (0, 0.0)])

    assert model.export_s_per_byte == pytest.approx(1e-3)
    assert model.import_s_per_byte == 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_no_coefficients_from_zero_on_come_closer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, wanted = rng.standard_normal((7, 3)), rng.standard_normal(7)

    found = least_squares(rows, wanted)

    assert (found >= 0).all()
    error = float(np.sum((wanted - rows @ found) ** 2))
    for change in itertools.product((-0.01, 0.0, 0.01), repeat=3):
        other = np.maximum(found + np.array(change), 0.0)
        assert float(np.sum((wanted - rows @ other) ** 2)) >= error - 1e-9
