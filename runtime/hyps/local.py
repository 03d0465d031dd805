"""Runs a plan in this process, one partition after another, within a memory budget."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyps.adapters.feeds import Feeds
from hyps.adapters.sessions import Mode
from hyps.adapters.spill_file import SpillCounts
from hyps.engine import OnActivation, Options, Outcome, Request, open_engine
from hyps.errors import HypsError
from hyps.formats.plan import NamedTensor, Plan
from hyps.formats.signature import check_outputs
from hyps.loading import Timing


class LocalRunner:
    """A plan ready to run in this process; a context manager that releases what it loaded.

    While everything fits the budget all partitions are kept loaded; otherwise those that do not fit are loaded for
    their turn and released, and a batch goes through a partition before the next one is loaded. `run` may be called
    from several threads.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        plan: Plan | None = None,
        memory_bytes: int | None = None,
        threads: int | None = None,
        exact: bool = False,
        variant: str | None = None,
        check: bool = True,
        own_process: bool = False,
        timeout_s: float | None = None,
        present_nbytes: int = 0,
    ) -> None:
        """Open the plan in `folder`.

        Args:
            folder: the plan folder.
            plan: its plan, where it was read before.
            memory_bytes: the most that this process may have resident; None takes the budget the plan was made for.
            threads: threads for one partition; None: one per core.
            exact: run as onnxruntime does without graph optimizations, bit for bit.
            variant: the variant's name; None: the first. Every partition runs here, whatever device it names.
            check: whether to compare every file with its digest first.
            own_process: whether no other onnxruntime session is ever made in this process, whose threads all partitions
                may then share: faster with many small partitions and more than one thread.
            timeout_s: the longest that the partitions may compute for one request; None: as long as they do. One
                operator that takes long by itself is not broken off, only what follows it.
            present_nbytes: bytes of a request that is in memory already: it is not to count twice in the budget.

        Raises:
            PlanError: the plan is missing, wrong, altered, or made for another CPU.
            InfeasibleError: one partition alone needs more than the budget; names the smallest that would do.
        """
        options = Options(
            memory_bytes,
            threads,
            exact,
            variant,
            check,
            own_process,
            timeout_s=timeout_s,
            present_nbytes=present_nbytes,
        )
        self._engine = open_engine(folder, options, plan)
        self._feeds = Feeds(self.plan.model.inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release every partition."""
        self._engine.close()

    @property
    def plan(self) -> Plan:
        """The plan that is run."""
        return self._engine.plan

    @property
    def inputs(self) -> Sequence[NamedTensor]:
        """The model's inputs."""
        return self.plan.model.inputs

    @property
    def outputs(self) -> Sequence[NamedTensor]:
        """The model's outputs."""
        return self.plan.model.outputs

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.plan.model.name

    @property
    def producer(self) -> str:
        """What made the plan."""
        return self.plan.producer

    @property
    def memory_bytes(self) -> int | None:
        """The budget of this process; None: unlimited."""
        return self._engine.memory_bytes

    @property
    def base_nbytes(self) -> int:
        """What the process takes without any partition."""
        return self._engine.base_nbytes

    @property
    def kept(self) -> tuple[str, ...]:
        """Ids of the partitions that stay loaded, in the plan's order."""
        return self._engine.kept

    @property
    def swapped(self) -> tuple[str, ...]:
        """Ids of the partitions that are loaded for their turn and released, in the plan's order."""
        return self._engine.swapped

    @property
    def spilled(self) -> SpillCounts:
        """Feature maps that went to a scratch file and came back, in bytes and seconds, since it was opened."""
        return self._engine.spilled

    @property
    def modes(self) -> Mapping[str, Mode]:
        """How each partition is run, by its id."""
        return self._engine.modes

    @property
    def timings(self) -> Mapping[str, Timing]:
        """Seconds that each partition took to load and to run, by its id."""
        return self._engine.timings

    def run(
        self,
        feeds: Mapping[str, Any],
        output_names: Sequence[str] | None = None,
        *,
        on_activation: OnActivation | None = None,
    ) -> dict[str, Any]:
        """Return the outputs that `output_names` lists (None or empty: all) by name, for one request.

        `on_activation` is called with the name and value of every tensor that a partition makes.

        Raises:
            TensorError: a name, element type or shape is not as the plan declares.
            ExecutionError: onnxruntime failed in a partition.
            DeadlineError: it took longer than the runner's `timeout_s`.
        """
        return self._engine.run_one(self._request(feeds, output_names), on_activation)

    def run_batch(
        self, requests: Sequence[Mapping[str, Any]], output_names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the outputs of each of `requests`; the partitions that are swapped are loaded once for many.

        Raises:
            TensorError: as `run`, of the first request for which it holds, before anything is run.
            ExecutionError: as `run`, of the first request that failed.
        """
        outcomes: dict[int, Outcome] = {}
        self.run_each([self._request(feeds, output_names) for feeds in requests], outcomes.__setitem__)
        return [_value(outcomes[index]) for index in range(len(requests))]

    def run_each(self, requests: Sequence[Request], on_done: Callable[[int, Outcome], None]) -> None:
        """Run checked `requests` and call `on_done` with the index and the outcome of each as it ends."""
        self._engine.run_each(requests, on_done)

    def _request(self, feeds: Mapping[str, Any], output_names: Sequence[str] | None) -> Request:
        checked = self._feeds.checked(feeds)
        if not output_names:
            return Request(checked)
        check_outputs(self.plan.model.outputs, output_names)
        return Request(checked, tuple(output_names))


def _value(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, HypsError):
        raise outcome
    return outcome
