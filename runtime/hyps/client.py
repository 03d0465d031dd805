"""`hyps.InferenceSession`: onnxruntime's session, for a plan folder or for the address of a worker or manager."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hyps.errors import UsageError
from hyps.formats.dtypes import ort_type_name
from hyps.formats.plan import NamedTensor
from hyps.formats.quantities import parse_nbytes

if TYPE_CHECKING:
    from hyps.local import LocalRunner
    from hyps.remote import RemoteRunner

_CPU = "CPUExecutionProvider"
_LOCAL_IN_FLIGHT = 16
"""Requests that a plan computes together: partitions that are swapped are loaded once for them."""


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output of the model, as onnxruntime describes one."""

    name: str
    type: str
    """In onnxruntime's words: `tensor(float)`."""
    shape: list[int | str | None]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What is known of the model, under onnxruntime's names."""

    producer_name: str
    graph_name: str
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


class InferenceSession:
    """Runs a plan, here or on a worker or manager, with the methods of `onnxruntime.InferenceSession`.

    `run` may be called from several threads, whose requests then travel and are computed at the same time.

        session = hyps.InferenceSession("plan/")
        (scores,) = session.run(None, {"image": image})
    """

    def __init__(
        self,
        plan_or_endpoint: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Open a plan folder, or connect to a worker or manager at an address such as `tcp://127.0.0.1:5757`.

        Args:
            plan_or_endpoint: a folder or an address.
            sess_options: an `onnxruntime.SessionOptions`, of which `intra_op_num_threads` is used.
            providers: as onnxruntime takes them; the CPU must be among them.
            memory: the most memory this process may have resident, in bytes or written like `256MB`; None: the budget
                the plan was made for. A worker has its own.
            threads: threads for one partition; None: one per core. A worker has its own.
            timeout_s: the deadline of each request, from when it is asked; None: as long as it takes. For a plan folder
                the longest that its partitions may compute for one request.

        Raises:
            PlanError: the plan cannot be used.
            PeerError: nobody answers at the address.
            InfeasibleError: a partition alone does not fit `memory`.
            UsageError: an argument cannot be understood.
        """
        _check_providers(providers)
        threads = threads or _threads_of(sess_options)
        self._runner = open_runner(plan_or_endpoint, memory=memory, threads=threads, timeout_s=timeout_s)
        self._output_names = [tensor.name for tensor in self._runner.outputs]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Return the outputs that `output_names` lists (None: all), in that order; `run_options` is not used.

        Raises:
            TensorError: a name, element type or shape is not as the model declares.
            ExecutionError: onnxruntime failed.
            DeadlineError: it took longer than it may.
            BusyError: the worker had no room for half a minute.
            LostError: the connection was lost while the request was under way; the next one connects anew.
            PeerError: the worker is gone.
        """
        return self._listed(self._runner.run(input_feed, output_names), output_names)

    def run_many(
        self,
        input_feeds: Iterable[Mapping[str, Any]],
        output_names: Sequence[str] | None = None,
        *,
        in_flight: int | None = None,
    ) -> Iterator[list[Any]]:
        """Yield what `run` returns for each of `input_feeds`, in their order, with many requests under way at once.

        Args:
            input_feeds: taken from as answers are yielded, `in_flight` in advance; do not change arrays before that.
            output_names: as for `run`.
            in_flight: the most requests that are under way or answered and not yielded; None: 64 with a worker or
                manager, 16 with a plan folder.

        Raises:
            UsageError: `in_flight` is below 1.
            HypsError: as `run`, at the place of the request that failed.
        """
        if in_flight is not None and in_flight < 1:
            raise UsageError(f"`in_flight` is {in_flight} and must be at least 1")
        return self._each(input_feeds, output_names, in_flight)

    def run_batch(
        self, input_feeds: Sequence[Mapping[str, Any]], output_names: Sequence[str] | None = None
    ) -> list[list[Any]]:
        """Return what `run` returns for each of `input_feeds`, in their order.

        Raises:
            HypsError: as `run`, of the first request that failed.
        """
        return [self._listed(made, output_names) for made in self._runner.run_batch(input_feeds, output_names)]

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs."""
        return described(self._runner.inputs)

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs."""
        return described(self._runner.outputs)

    def get_modelmeta(self) -> ModelMetadata:
        """Return what is known of the model."""
        return metadata_of(self._runner)

    def get_providers(self) -> list[str]:
        """Return what computes."""
        return [_CPU]

    def close(self) -> None:
        """Release the plan, or the connection; requests that are under way there fail."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _listed(self, made: Mapping[str, Any], output_names: Sequence[str] | None) -> list[Any]:
        return [made[name] for name in output_names or self._output_names]

    def _each(
        self, input_feeds: Iterable[Mapping[str, Any]], output_names: Sequence[str] | None, in_flight: int | None
    ) -> Iterator[list[Any]]:
        for made in _outputs_of_each(self._runner, input_feeds, output_names, in_flight):
            yield self._listed(made, output_names)


def open_runner(
    plan_or_endpoint: Any, *, memory: int | str | None, threads: int | None, timeout_s: float | None
) -> "LocalRunner | RemoteRunner":
    """Return what computes a plan folder, or asks at an address; see `InferenceSession`.

    Raises:
        HypsError: as `InferenceSession`.
    """
    target = str(plan_or_endpoint)
    nbytes = parse_nbytes(memory) if isinstance(memory, str) else memory
    if "://" not in target:
        from hyps.local import LocalRunner  # brings onnxruntime, which a client of a worker does without

        return LocalRunner(target, memory_bytes=nbytes, threads=threads, timeout_s=timeout_s)
    from hyps.remote import connect

    if nbytes is not None or threads is not None:
        raise UsageError("`memory` and `threads` are the worker's own", "give them to `hyps-worker`")
    return connect(target, timeout_s=timeout_s)


def described(tensors: Sequence[NamedTensor]) -> list[NodeArg]:
    """Return inputs or outputs as onnxruntime describes them."""
    return [NodeArg(tensor.name, ort_type_name(tensor.dtype), list(tensor.shape or ())) for tensor in tensors]


def metadata_of(runner: "LocalRunner | RemoteRunner") -> ModelMetadata:
    """Return what is known of a runner's model."""
    return ModelMetadata(runner.producer, runner.model_name)


def _outputs_of_each(
    runner: "LocalRunner | RemoteRunner",
    input_feeds: Iterable[Mapping[str, Any]],
    output_names: Sequence[str] | None,
    in_flight: int | None,
) -> Iterator[dict[str, Any]]:
    from hyps.remote import RemoteRunner

    if isinstance(runner, RemoteRunner):
        yield from runner.run_many(input_feeds, output_names, in_flight=in_flight)
        return
    requests = iter(input_feeds)
    while batch := list(islice(requests, in_flight or _LOCAL_IN_FLIGHT)):
        yield from runner.run_batch(batch, output_names)


def _threads_of(sess_options: Any) -> int | None:
    return getattr(sess_options, "intra_op_num_threads", 0) or None


def _check_providers(providers: Sequence[Any] | None) -> None:
    names = [provider[0] if isinstance(provider, tuple) else provider for provider in providers or ()]
    if names and _CPU not in names:
        raise UsageError(f"providers without `{_CPU}` are not supported", f"add `{_CPU}` to `providers`")
