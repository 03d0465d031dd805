"""Everything that HyPS refuses, by whose fault it is, with the exit status a command ends with."""


class HypsError(Exception):
    """A refusal: one sentence that names the file, layer, tensor or option, and what to do next.

    Attributes:
        message: lower case, no full stop, the values in it.
        hint: what to do next; may be empty.
        code: a stable `E_...` word for machines.
        exit_status: what a command ends with.
    """

    exit_status = 1
    default_code = "E_FAILED"

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class UsageError(HypsError):
    """An option or argument cannot be understood; a value that is understood but impossible is an InfeasibleError."""

    exit_status = 2
    default_code = "E_USAGE"


class ModelError(HypsError):
    """The model file is missing, no model, or a model that onnxruntime would refuse."""

    default_code = "E_MODEL"


class PlanError(HypsError):
    """The plan folder is missing, incomplete, altered, or written for another reader."""

    default_code = "E_PLAN"


class ProfileError(HypsError):
    """A profile is missing, no profile, wrong in itself, or written for another reader."""

    default_code = "E_PROFILE"


class ClusterError(HypsError):
    """The cluster file is missing, no TOML, or wrong; limits in it that cannot be met are an InfeasibleError."""

    default_code = "E_CLUSTER"


class TensorError(HypsError):
    """A request's tensor has the wrong name, dtype or shape, or cannot be read."""

    default_code = "E_TENSOR"


class ExecutionError(HypsError):
    """onnxruntime failed while it ran a partition on inputs that the plan allows."""

    default_code = "E_EXECUTION"


class DeadlineError(ExecutionError):
    """One run of the model took longer than it was given; a worker that does not answer is a PeerError."""

    default_code = "E_DEADLINE"


class OutputError(HypsError):
    """The result cannot be written where it was asked for."""

    default_code = "E_OUTPUT"


class PeerError(HypsError):
    """A worker cannot be reached, answers nonsense, or its port is taken."""

    default_code = "E_UNAVAILABLE"


class BusyError(PeerError):
    """The worker's queue is full; the same request can be sent again later.

    Attributes:
        retry_after_s: when there may be room.
    """

    default_code = "E_BUSY"

    def __init__(self, message: str, hint: str = "", code: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint, code)
        self.retry_after_s = retry_after_s


class LostError(PeerError):
    """The connection was lost while a request was under way; one that was not sent yet is sent on the next connection.

    Attributes:
        was_accepted: True: the peer had promised to answer it; None: it may have it or not.
    """

    def __init__(self, message: str, hint: str = "", code: str = "", was_accepted: bool | None = None) -> None:
        super().__init__(message, hint, code)
        self.was_accepted = was_accepted


class DependencyError(HypsError):
    """A package is missing or too old; the hint is the command that installs it."""

    default_code = "E_DEPENDENCY"


class InfeasibleError(HypsError):
    """The constraints cannot be met; says which layer is in the way and the smallest budget that would do."""

    exit_status = 3
    default_code = "E_INFEASIBLE"


class DifferenceError(HypsError):
    """The plan ran and its outputs are not the model's."""

    exit_status = 4
    default_code = "E_DIFFERENT"


class InternalError(HypsError):
    """A state that cannot be: a bug of ours, never the user's input."""

    exit_status = 70
    default_code = "E_INTERNAL"


def printable(text: str, limit: int = 120) -> str:
    r"""Return `text` fit for one line of a terminal: control characters escaped, cut at `limit` characters.

    Names in models and plans come from strangers: they may hold escape sequences or be megabytes long.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if len(text) <= limit and text.isprintable():
        return text
    head = text[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in head)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
