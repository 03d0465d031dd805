"""`hyps.InferenceSession`: onnxruntime's session, for a plan folder or for a worker's address."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Runs a plan, here or on a worker, with the methods of `onnxruntime.InferenceSession`.

    `run` may be called from several threads; a remote session sends one request at a time.

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
        """Open a plan folder, or connect to a worker at an address such as `tcp://127.0.0.1:5757`.

        Args:
            plan_or_endpoint: a folder or an address.
            sess_options: an `onnxruntime.SessionOptions`, of which `intra_op_num_threads` is used.
            providers: as onnxruntime takes them; the CPU must be among them.
            memory: the most memory this process may have resident, in bytes or written like `256MB`; None: the budget
                the plan was made for. A worker has its own.
            threads: threads for one partition; None: one per core.
            timeout_s: the longest that a plan's partitions may compute for one request; None: as long as they do. A
                worker has its own.

        Raises:
            PlanError: the plan cannot be used.
            PeerError: no worker answers at the address.
            InfeasibleError: a partition alone does not fit `memory`.
            UsageError: an argument cannot be understood.
        """
        _check_providers(providers)
        target = str(plan_or_endpoint)
        nbytes = parse_nbytes(memory) if isinstance(memory, str) else memory
        self._runner: LocalRunner | RemoteRunner
        if "://" in target:
            self._runner = _connect(target, nbytes, threads, timeout_s)
        else:
            self._runner = _open(target, nbytes, threads or _threads_of(sess_options), timeout_s)
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
            PeerError: the worker is gone.
        """
        made = self._runner.run(input_feed, output_names)
        return [made[name] for name in output_names or self._output_names]

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs."""
        return [_node_arg(tensor) for tensor in self._runner.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs."""
        return [_node_arg(tensor) for tensor in self._runner.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """Return what is known of the model."""
        return ModelMetadata(self._runner.producer, self._runner.model_name)

    def get_providers(self) -> list[str]:
        """Return what computes."""
        return [_CPU]

    def close(self) -> None:
        """Release the plan, or the connection."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open(folder: str, memory_bytes: int | None, threads: int | None, timeout_s: float | None) -> "LocalRunner":
    from hyps.local import LocalRunner  # brings onnxruntime, which a client of a worker does without

    return LocalRunner(folder, memory_bytes=memory_bytes, threads=threads, timeout_s=timeout_s)


def _connect(address: str, memory_bytes: int | None, threads: int | None, timeout_s: float | None) -> "RemoteRunner":
    from hyps.remote import connect

    if memory_bytes is not None or threads is not None or timeout_s is not None:
        raise UsageError("`memory`, `threads` and `timeout_s` are the worker's own", "give them to `hyps-worker`")
    return connect(address)


def _threads_of(sess_options: Any) -> int | None:
    return getattr(sess_options, "intra_op_num_threads", 0) or None


def _check_providers(providers: Sequence[Any] | None) -> None:
    names = [provider[0] if isinstance(provider, tuple) else provider for provider in providers or ()]
    if names and _CPU not in names:
        raise UsageError(f"providers without `{_CPU}` are not supported", f"add `{_CPU}` to `providers`")


def _node_arg(tensor: NamedTensor) -> NodeArg:
    return NodeArg(tensor.name, ort_type_name(tensor.dtype), list(tensor.shape or ()))
