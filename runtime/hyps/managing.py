"""Opens a plan's manager: its files, links, planner and signals around the shell."""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hyps.adapters.hub_store import batched_inputs
from hyps.adapters.plan_files import check_files, read_plan
from hyps.adapters.planner import ChildPlanner
from hyps.adapters.row_trials import require_independent_rows
from hyps.adapters.signals import leaving_on_signals
from hyps.adapters.tokens import read_token
from hyps.adapters.zmq_links import ZmqLinks
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.core.manager_state import ManagerState
from hyps.errors import InfeasibleError, UsageError, printable
from hyps.formats.node_messages import MAX_SETUP_NBYTES
from hyps.formats.plan import Plan
from hyps.manager import Access, Manager
from hyps.tracing import Tracing

logger = logging.getLogger(__name__)

_LINGER_S = 2.0
_MESSAGE_FACTOR = 4
"""A message may have so many times the bytes of the largest tensor."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a manager serves, and for whom."""

    bind: str
    token_file: str | None = None
    """What nodes have to know stands in it; None: nothing."""
    metrics: str = ""
    """HOST:PORT for metrics; empty: none."""
    allow_remote: bool = False
    trace: str = ""
    """The file for a trace; empty: none. `ManagerOptions.wants_spans` goes with it."""


def serve(
    folder: str | Path,
    serving: Serving,
    options: ManagerOptions,
    *,
    on_ready: Callable[[Plan, str], None] = lambda _plan, _address: None,
) -> bool:
    """Manage the plan in `folder` until SIGTERM or SIGINT; return whether all that was accepted has ended.

    `on_ready` is called with the plan and the address once clients and nodes can connect.

    Raises:
        PlanError: the plan is missing, wrong or altered.
        UsageError: the address or the token file is none, or a tensor that is to be kept is none of the plan's.
        InfeasibleError: requests cannot be computed together with this model.
        PeerError: the address is taken.
        OutputError: the trace cannot be written.
    """
    plan = read_plan(folder)
    check_files(folder, plan)
    _check(plan, options)
    if options.batch_rows > 1:
        _try_rows(folder)
    token = "" if serving.token_file is None else read_token(serving.token_file)
    access = Access(token, plan.cpu_family if plan.optimization == "native" else None)
    largest = max((info.nbytes or 0 for info in plan.tensors.values()), default=0)
    is_open_ended = any(info.nbytes is None or _is_dynamic(info.shape) for info in plan.tensors.values())
    state = ManagerState(plan, options, _new_secret)
    max_nbytes = max(largest, MAX_SETUP_NBYTES, state.hub.max_nbytes if is_open_ended else 0)
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(
            ZmqLinks(
                frame_nbytes=max_nbytes,
                message_nbytes=_MESSAGE_FACTOR * max_nbytes,
                assembled_nbytes=max(_MESSAGE_FACTOR * max_nbytes, state.hub.max_nbytes),
            )
        )
        address = links.listen(serving.bind, allow_remote=serving.allow_remote)
        planner = stack.enter_context(contextlib.closing(ChildPlanner(links.wake)))
        if not options.is_fixed:
            state.set_planner(planner.missing())
        manager = Manager(state, links, Path(folder), access=access, planner=planner, max_nbytes=max_nbytes)
        if serving.trace:
            manager.tracing = stack.enter_context(contextlib.closing(Tracing(Path(serving.trace), plan)))
        stack.enter_context(leaving_on_signals(manager.leave))
        with _metrics_of(manager, serving):  # which wakes the links, so that it ends before
            on_ready(plan, address)
            is_whole = manager.run()
        links.close(linger_s=_LINGER_S if is_whole else 0.0)
    return is_whole


def _check(plan: Plan, options: ManagerOptions) -> None:
    made = {name for part in plan.partitions for name in part.outputs}
    for name in options.keep if isinstance(options.keep, tuple) else ():
        if name not in made:
            text = f"`--keep {printable(name)}`: no partition of the plan makes that tensor"
            raise UsageError(text, f"see `hypsc inspect`, or give `{ALL_TENSORS}` or `none`")
    if options.batch_rows > 1 and not batched_inputs(plan.model.inputs, plan.model.outputs):
        text = "requests cannot be computed together: no dimension leads all inputs and outputs of the model"
        raise InfeasibleError(text, "leave --batch out, or convert the model with a dynamic first dimension")


def _try_rows(folder: str | Path) -> None:
    """Refuse to compute requests together where one would change the other's answer."""
    problem = require_independent_rows(folder)
    if problem:
        text = "could not try whether requests may be computed together, and takes your word for it: %s"
        logger.warning(text, problem)


def _is_dynamic(shape: tuple[int | str | None, ...] | None) -> bool:
    return shape is None or not all(isinstance(dim, int) for dim in shape)


def _new_secret() -> str:
    return secrets.token_hex(16)


@contextlib.contextmanager
def _metrics_of(manager: Manager, serving: Serving) -> Iterator[None]:
    if not serving.metrics:
        yield
        return
    from hyps.adapters.metrics import MetricsServer  # brings the standard library's HTTP server: 4 MB

    with MetricsServer(serving.metrics, manager.wake, allow_remote=serving.allow_remote) as metrics:
        logger.info("metrics at %s", metrics.url)
        manager.metrics = metrics
        yield
