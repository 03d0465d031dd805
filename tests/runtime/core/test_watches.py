"""What is counted is what is told."""

import pytest

from hyps.core.watches import RequestsWatch, WorkWatch
from hyps.formats.plan import Prediction


def test_every_step_of_requests_is_counted() -> None:
    watch = RequestsWatch()
    for moment in range(4):
        watch.accept(float(moment))
        watch.begin(0.5)
    watch.retry()
    watch.finish(4.0, 0.25)
    watch.fail(5.0, "E_DEADLINE")
    watch.cancel()
    watch.refuse()
    told = watch.status(10.0, queued=1, running=2, max_queued=64, prediction=Prediction(latency_s=0.2), clients=3)
    assert (told.accepted, told.done, told.failed, told.cancelled, told.refused, told.retried) == (4, 1, 1, 1, 1, 1)
    assert (told.queued, told.running, told.max_queued, told.clients) == (1, 2, 64, 3)
    assert (told.failures, told.predicted_latency_s, told.predicted_rps) == ({"E_DEADLINE": 1}, 0.2, None)
    assert (told.latency.p50_s, told.queued_time.p50_s) == (0.25, 0.5)
    assert told.accepted_per_s == pytest.approx(0.4)


def test_made_up_error_codes_do_not_fill_the_memory() -> None:
    watch = RequestsWatch()
    for number in range(1000):
        watch.fail(0.0, f"E_{number}")
    told = watch.status(0.0, queued=0, running=0)
    assert len(told.failures) == 65
    assert told.failures["E_OTHER"] == 1000 - 64


def test_a_device_that_always_computes_is_fully_used() -> None:
    watch = WorkWatch()
    for number in range(1, 200):
        watch.finish(number * 0.1, 0.1, 0.01, 1000)
    assert watch.utilisation(19.9) == pytest.approx(1.0, abs=0.01)
    assert watch.items_per_s(19.9) == pytest.approx(10.0, rel=0.05)
    assert (watch.items_done, watch.sent_nbytes) == (199, 199_000)
    assert watch.run.p50_s == pytest.approx(0.1)
    assert watch.waited.p95_s == pytest.approx(0.01)


def test_a_run_that_has_not_ended_counts_too() -> None:
    watch = WorkWatch()
    assert watch.utilisation(100.0, running_s=5.0) == pytest.approx(0.5)
    assert watch.utilisation(100.0, running_s=500.0) == pytest.approx(1.0)
