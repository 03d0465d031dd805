"""What is counted of requests, partitions and devices for those who watch; each makes its part of a report."""

from collections import Counter

from hyps.core.rates import Latencies, Rate
from hyps.formats.plan import Prediction
from hyps.formats.status import Durations, RequestsStatus

_MOST_CODES = 64
"""Error codes told apart; nodes make them."""

_REMEMBERED_RUNS = 256
_MOST_NBYTES = 2**62
"""That a report can tell of; nodes make the numbers that are added up."""


class RequestsWatch:
    """Counts requests; whoever knows a request's life calls one method per step of it."""

    def __init__(self) -> None:
        self._accepted, self._done, self._failed = Rate(), Rate(), Rate()
        self._failures: Counter[str] = Counter()
        self._latency, self._queued_time = Latencies(), Latencies()
        self._cancelled = self._refused = self._retried = 0

    def accept(self, now_s: float) -> None:
        """A request was taken."""
        self._accepted.add(now_s)

    def refuse(self) -> None:
        """A request found no room."""
        self._refused += 1

    def begin(self, queued_s: float) -> None:
        """A request's work begins, `queued_s` after it was accepted."""
        self._queued_time.add(queued_s)

    def retry(self) -> None:
        """A request begins anew, its device lost."""
        self._retried += 1

    def finish(self, now_s: float, latency_s: float) -> None:
        """A request was answered, `latency_s` after it was accepted."""
        self._done.add(now_s)
        self._latency.add(latency_s)

    def fail(self, now_s: float, code: str) -> None:
        """A request ended without an answer."""
        self._failed.add(now_s)
        known = code in self._failures or len(self._failures) < _MOST_CODES
        self._failures[code if known else "E_OTHER"] += 1

    def cancel(self) -> None:
        """Nobody waits for a request any more."""
        self._cancelled += 1

    def status(
        self,
        now_s: float,
        *,
        queued: int,
        running: int,
        max_queued: int | None = None,
        max_running: int | None = None,
        prediction: Prediction | None = None,
        clients: int = 0,
    ) -> RequestsStatus:
        """Return what was counted, with what the caller knows; see `RequestsStatus`."""
        return RequestsStatus(
            queued=queued,
            running=running,
            max_queued=max_queued,
            max_running=max_running,
            predicted_latency_s=None if prediction is None else prediction.latency_s,
            predicted_rps=None if prediction is None else prediction.throughput_rps,
            clients=clients,
            accepted=round(self._accepted.total),
            done=round(self._done.total),
            failed=round(self._failed.total),
            cancelled=self._cancelled,
            refused=self._refused,
            retried=self._retried,
            failures=dict(sorted(self._failures.items())),
            accepted_per_s=self._accepted.per_s(now_s),
            done_per_s=self._done.per_s(now_s),
            failed_per_s=self._failed.per_s(now_s),
            latency=self._latency.durations(),
            queued_time=self._queued_time.durations(),
        )


class WorkWatch:
    """Counts the runs of one partition, or of all that one device runs."""

    def __init__(self) -> None:
        self._run, self._waited = Latencies(_REMEMBERED_RUNS), Latencies(_REMEMBERED_RUNS)
        self._busy, self._items = Rate(), Rate()
        self.failed = 0
        self.sent_nbytes = 0

    def finish(self, now_s: float, run_s: float, waited_s: float, nbytes: int) -> None:
        """A run has ended at `now_s`, about; `nbytes` are those of the tensors it made."""
        self._run.add(run_s)
        self._waited.add(waited_s)
        self._busy.add_between(now_s - run_s, now_s)
        self._items.add(now_s)
        self.sent_nbytes = min(_MOST_NBYTES, self.sent_nbytes + nbytes)

    @property
    def run(self) -> Durations:
        """How long runs take."""
        return self._run.durations()

    @property
    def waited(self) -> Durations:
        """How long they wait, all their inputs being there."""
        return self._waited.durations()

    @property
    def items_done(self) -> int:
        """Runs since the start."""
        return len(self._run)

    def items_per_s(self, now_s: float) -> float:
        """Runs per second of the last seconds."""
        return self._items.per_s(now_s)

    def utilisation(self, now_s: float, running_s: float = 0.0, window_s: float = 10.0) -> float:
        """Return the part of the last seconds that runs took, with what now runs, since `running_s`."""
        return self._busy.per_s(now_s) + min(running_s, window_s) / window_s
