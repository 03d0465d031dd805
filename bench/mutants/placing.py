"""Faults in what placements cost, how the best is found, and what is claimed of it."""

from mutants.fault import Fault

_ESTIMATE = "tests/passes/test_estimate.py"
_EXACT = "tests/passes/searches/test_exact.py"
_REGIMES = "tests/passes/searches/test_regimes.py"
_RUN = "passes/hyps_passes/request_run.py"
_PROBLEM = "passes/hyps_passes/problem.py"
_SEARCH = "passes/hyps_passes/searches/exact.py"

FAULTS = (
    Fault(
        "answer-comes-back-for-free",
        _RUN,
        "return clock + problem.latency_s(self.stages[-1].machine, problem.entry)",
        "return clock",
        "the way back of the answer takes no time",
        (_ESTIMATE,),
    ),
    Fault(
        "energy-without-idling",
        _RUN,
        " + machine.idle_w * latency",
        "",
        "devices that wait take no power",
        (_ESTIMATE,),
    ),
    Fault(
        "private-over-strangers",
        _PROBLEM,
        "if channel.source not in delay or (is_guarded and not self.machines[channel.source].is_trusted):",
        "if channel.source not in delay:",
        "private tensors pass over devices that are not trusted",
        (_EXACT, "tests/compiler/test_placement.py"),
    ),
    Fault(
        "bound-of-the-dearest-order",
        _SEARCH,
        "return replace(better, bound=min(first.bound, second.bound, better.score))",
        "return replace(better, bound=max(first.bound, second.bound))",
        "the bound of the dearest order of devices is taken for that of all",
        (_EXACT,),
    ),
    Fault(
        "limits-broken-by-the-cut",
        _SEARCH,
        "if is_complete and (free is None or not violations(problem, free.estimate, free.assignment)):",
        "if is_complete:",
        "the cut that knows no limits is taken though it breaks one",
        (_EXACT,),
    ),
    Fault(
        "load-left-out-of-the-table",
        "passes/hyps_passes/searches/regimes.py",
        "server = told.busy_s[1 - problem.entry]",
        "server = 0.0",
        "the table does not know that a loaded server is slower",
        (_REGIMES,),
    ),
    Fault(
        "dearest-variant",
        "runtime/hyps/core/switching.py",
        "return min(mine, key=",
        "return max(mine, key=",
        "the variant that answers last is looked up",
        ("tests/runtime/core/test_switching.py",),
    ),
)
