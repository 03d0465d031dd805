"""Limits against findings: pure, so that a changed limit costs nothing but this."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hyps.errors import DifferenceError, HypsError, InfeasibleError, InternalError, printable
from hyps.formats.quantities import format_count, format_nbytes, format_seconds
from hyps_compiler.checking.facts import Facts, Outcome, PlanFacts, Problem
from hyps_compiler.checking.figures import LIMITS, Found, Limit
from hyps_compiler.checking.growth import Culprit, culprit, grown_most
from hyps_compiler.checking.rules import Rule

COMPILES = "compiles"
"""The check that every model has: it can be converted, compiled within its limits, and computes what it did."""

GREEN = 0

SEVERITY = (GREEN, InfeasibleError.exit_status, DifferenceError.exit_status, HypsError.exit_status)
"""Exit statuses from the best to the worst; any other, such as that of a bug of ours, is worse still."""

_KNOWN = (*SEVERITY, InternalError.exit_status)
"""What a model may end with; an option of the budget that cannot be is no wrong command line, but a broken budget."""

_MESSAGE_CHARS = 2000
_OPTION = re.compile(
    r"`?--(max-params|max-tensor-bytes|memory|optimize|partitions|timeout)\b"
    r"(?: (?:([0-9](?:[0-9.]*[0-9])?(?: ?[kMGT]?i?B\b)?)|(native|portable)\b))?`?"
)
"""Of `hypsc compile`, with its value if one follows."""
_LEAST_MEMORY_NBYTES = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one check of one model."""

    check: str
    """`compiles`, a limit's name, or `growth.` and a limit's name."""
    title: str
    is_kept: bool
    value: str = ""
    """The figure, for people; empty where there is none."""
    most: str = ""
    """What was allowed."""
    message: str = ""
    """One sentence on what is wrong; empty where it is kept."""
    exit_status: int = GREEN
    partition: str = ""
    layer: str = ""
    number: float | None = None
    """The figure, for machines, in bytes, seconds or as a share."""
    most_number: float | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """One model with what was found and how it compares."""

    model: str
    """As it was given: a path or `zoo:NAME`."""
    rule: Rule
    outcome: Outcome
    verdicts: tuple[Verdict, ...]
    previous: PlanFacts | None = None
    is_cached: bool = False
    seconds: float = 0.0
    """What it took this time."""
    notes: tuple[str, ...] = field(default=())
    name: str = ""
    """By which later checks know it: its path from the budget's folder, or `zoo:NAME`."""

    @property
    def exit_status(self) -> int:
        """The worst of its verdicts."""
        return worst(verdict.exit_status for verdict in self.verdicts)

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The verdicts that are not kept."""
        return tuple(verdict for verdict in self.verdicts if not verdict.is_kept)


def worst(statuses: Iterator[int] | Sequence[int]) -> int:
    """Return the status that decides: a bug, then what is broken, then what differs, then a passed limit.

    >>> worst([0, 3, 4]), worst([1, 4]), worst([])
    (4, 1, 0)
    """
    return max(statuses, key=lambda status: SEVERITY.index(status) if status in SEVERITY else math.inf, default=GREEN)


def judge(outcome: Outcome, rule: Rule, previous: PlanFacts | None, budget: str) -> tuple[Verdict, ...]:
    """Return the verdicts on one model: that it compiles, then each limit, then each limit of growth.

    Args:
        outcome: what came of it.
        rule: what the budget says of it.
        previous: what it was before; None where nothing is known, and then growth is not judged.
        budget: the name of the budget file, for messages.
    """
    if outcome.problem is not None:
        return (_refused(outcome.problem, rule, previous),)
    facts = outcome.facts
    assert facts is not None, "an outcome has facts or a problem"
    verdicts = [Verdict(COMPILES, "compiles, computes the same", is_kept=True)]
    for name, most in rule.limits.items():
        verdicts += _limited(LIMITS[name], facts, most, previous, rule, budget)
    for name, share in rule.growth.items() if previous is not None else ():
        assert previous is not None
        verdicts += _grown(LIMITS[name], facts, share, previous, rule, budget)
    return tuple(verdicts)


def _refused(problem: Problem, rule: Rule, previous: PlanFacts | None) -> Verdict:
    """Return the verdict on a model that could not be compiled; of one that cannot keep a limit with what grew."""
    told, layer = problem.message, ""
    if problem.exit_status == InfeasibleError.exit_status and problem.layers:
        named = [one for one in problem.layers if f"`{printable(one.name)}`" in problem.message]
        found = grown_most(named or problem.layers, problem.layers, previous)
        assert found is not None
        layer = found.layer.name
        other = _told_options(rule, previous)
        told += f"; {other}" if other else ""
        told += f"; {_told_culprit(found, previous)}" if _is_to_blame(found, other) or not (named or other) else ""
    message = _in_words_of_budgets(f"{told}; {problem.hint}" if problem.hint else told)
    return Verdict(
        COMPILES,
        "compiles, computes the same",
        is_kept=False,
        message=f"{printable(message, _MESSAGE_CHARS)} [{problem.code}]",
        exit_status=problem.exit_status if problem.exit_status in _KNOWN else HypsError.exit_status,
        layer=layer,
    )


def _in_words_of_budgets(text: str) -> str:
    """Return a sentence with options as they stand in a budget instead of on `hypsc compile`'s command line."""

    def renamed(match: "re.Match[str]") -> str:
        name, number, word = match[1].replace("-", "_"), match[2], match[3]
        if name in ("max_params", "partitions") and number:
            return f"`{name} = {number}`"
        return f'`{name} = "{number or word}"`' if number or word else f"`{name}`"

    return _OPTION.sub(renamed, text)


def _limited(
    limit: Limit, facts: Facts, most: float, previous: PlanFacts | None, rule: Rule, budget: str
) -> Iterator[Verdict]:
    found = limit.find(facts)
    if found is None:
        return
    if isinstance(found, str):
        yield _unknown(limit, limit.name, found, budget)
        return
    shown, allowed = _shown(found.value, limit.unit), _shown(most, limit.unit)
    if found.value <= most:
        yield Verdict(limit.name, limit.title, True, shown, allowed, number=found.value, most_number=most)
        return
    if shown == allowed:  # three digits do not tell them apart
        shown, allowed = _exact(found.value, limit.unit), _exact(most, limit.unit)
    figure = f"{found.subject} {shown}{found.what}"
    yield _passed(
        limit,
        limit.name,
        found,
        f"{figure}, more than the {allowed} of {printable(budget)}",
        _remedy(limit, found, rule),
        facts.plan,
        previous,
        rule,
        (shown, allowed, found.value, most),
    )


def _grown(limit: Limit, facts: Facts, share: float, previous: PlanFacts, rule: Rule, budget: str) -> Iterator[Verdict]:
    found = limit.find(facts)
    before = limit.find(Facts(plan=previous))
    if found is None or before is None:
        return
    check = f"growth.{limit.name}"
    if isinstance(found, str) or isinstance(before, str):
        yield _unknown(limit, check, found if isinstance(found, str) else f"of the previous plan: {before}", budget)
        return
    rise = (found.value - before.value) / before.value if before.value else math.inf if found.value else 0.0
    shown, allowed = _percent(rise), _percent(share)
    if found.value <= before.value * (1 + share):
        yield Verdict(check, f"{limit.title}, growth", True, shown, allowed, number=rise, most_number=share)
        return
    figure = f"{found.subject} {_shown(found.value, limit.unit)}{found.what}"
    was = _shown(before.value, limit.unit)
    more = f"{shown} more than the {was}" if math.isfinite(rise) else f"where it was {was}"
    enough = f'`growth.{limit.name} = "{math.ceil(rise * 100)}%"` would do' if math.isfinite(rise) else ""
    yield _passed(
        limit,
        check,
        found,
        f"{figure}, {more} of the previous plan, where {printable(budget)} allows {allowed}",
        enough,
        facts.plan,
        previous,
        rule,
        (shown, allowed, rise if math.isfinite(rise) else None, share),
    )


def _passed(
    limit: Limit,
    check: str,
    found: Found,
    sentence: str,
    remedy: str,
    plan: PlanFacts,
    previous: PlanFacts | None,
    rule: Rule,
    figures: tuple[str, str, float | None, float],
) -> Verdict:
    other = _told_options(rule, previous)
    did_it = culprit(found.layers, plan, previous)
    if did_it is not None and (did_it.has_grown or check != limit.name) and not _is_to_blame(did_it, other):
        did_it = None  # none is better than a wrong one
    told = (
        _told_culprit(did_it, None if other else previous)
        if did_it
        else ""
        if other or not found.layers
        else _NONE_GREW
    )
    reasons = [reason for reason in (found.told, other, told) if reason]
    message = f"{sentence}: {', '.join(reasons)}" if reasons else sentence
    return Verdict(
        check,
        limit.title if check == limit.name else f"{limit.title}, growth",
        is_kept=False,
        value=figures[0],
        most=figures[1],
        message=f"{message}; {remedy}" if remedy else message,
        exit_status=limit.exit_status,
        partition=found.partition,
        layer=did_it.layer.name if did_it else found.layer,
        number=figures[2],
        most_number=figures[3],
    )


def _unknown(limit: Limit, check: str, reason: str, budget: str) -> Verdict:
    message = f"`{check}` of {printable(budget)} cannot be checked: {reason}"
    return Verdict(check, limit.title, is_kept=False, value="?", message=message, exit_status=limit.exit_status)


_NONE_GREW = "no layer of it has grown much since the previous plan"


def _told_options(rule: Rule, previous: PlanFacts | None) -> str:
    """Return how the model is compiled otherwise than the previous plan was, as a phrase; empty where it is not."""
    before = previous.options if previous is not None else None
    others = rule.options.differences(before) if before is not None else ()
    return f"the options are not those of the previous plan, {', '.join(others)}" if others else ""


def _is_to_blame(found: Culprit, other: str) -> bool:
    """Return whether a layer has changed, and not only its name by other options."""
    return found.has_grown and not (other and found.is_new)


def _told_culprit(found: Culprit, previous: PlanFacts | None) -> str:
    """Return what the layer did, as a phrase."""
    layer = found.layer
    named = f"layer `{printable(layer.name)}` ({printable(layer.kind)})"
    now = format_nbytes(layer.weight_bytes)
    if found.is_new:
        return f"{named} is new since the previous plan, with {now} of weights"
    if found.has_grown and found.before is not None:
        return (
            f"{named} grew from {format_nbytes(found.before.weight_bytes)} to {now} of weights since the previous plan"
        )
    same = f"{_NONE_GREW}, and " if previous is not None else ""
    return f"{same}its largest is {named} with {now} of weights"


def _remedy(limit: Limit, found: Found, rule: Rule) -> str:
    """Return what would do; a limit on differences is no wish that can be granted."""
    if limit.exit_status == DifferenceError.exit_status:
        return ""
    enough = f"`limits.{limit.name} = {_written(found.value + found.slack, limit.unit)}` would do"
    options, most = rule.options, rule.limits[limit.name]
    if options.cluster is not None:
        return enough
    if limit.name == "peak_memory" and most < _LEAST_MEMORY_NBYTES:  # no process of ours needs so little
        return f'{enough}; a number without a unit is bytes, did you mean `"{most:.15g}MB"`?'
    if limit.name == "peak_memory" and options.memory_bytes is None:
        return f"{enough}, or `memory = {_written(most, 'bytes', up=False)}`, which has the model divided to fit"
    if limit.name in ("partition_bytes", "partition_params") and options.max_params is None:
        return f"{enough}, or `max_params`, which has the model divided"
    return enough


def _written(value: float, unit: str, *, up: bool = True) -> str:
    """Return a figure as a budget has it, rounded to three digits upwards, or downwards.

    >>> _written(71_234_567, "bytes"), _written(9, "count"), _written(0.0301234, "s")
    ('"71.3MB"', '9', '"30.2ms"')
    """
    if unit == "s":
        value *= 1e6
    step = 10 ** max(math.floor(math.log10(value)) - 2, 0) if value >= 1 else 1
    rounded = (math.ceil if up else math.floor)(value / step) * step
    if unit == "s":
        return f'"{_decimal(rounded / 1e3)}ms"'
    scale, suffix = _scale(rounded)
    if unit == "bytes":
        return f'"{_decimal(rounded / scale)}{suffix}B"'
    return f'"{_decimal(rounded / scale)}{suffix.upper()}"' if suffix else str(rounded)


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _scale(value: float) -> tuple[int, str]:
    return next(
        ((scale, name) for scale, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if value >= scale), (1, "")
    )


def _shown(value: float, unit: str) -> str:
    formats: dict[str, Callable[[float], str]] = {"bytes": format_nbytes, "count": _count, "s": format_seconds}
    return formats.get(unit, _plain)(value)


def _exact(value: float, unit: str) -> str:
    """Return a figure with all its digits."""
    return f"{value:.12g} {'B' if unit == 'bytes' else 's' if unit == 's' else ''}".rstrip()


def _count(value: float) -> str:
    return str(int(value)) if value < 10_000 else format_count(value)


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "from nothing"
    return f"{share * 100:.3g} %" if share < 9.995 else f"{share * 100:,.0f} %"
