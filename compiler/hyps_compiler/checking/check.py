"""The check of all models: from the cache or by a process each, then compared with the budget."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hyps.errors import InfeasibleError, ModelError, printable
from hyps_compiler.checking.budget import Budget
from hyps_compiler.checking.cache import Cache
from hyps_compiler.checking.facts import Outcome, PlanFacts, Problem, problem_of
from hyps_compiler.checking.job import BaselineJob, ModelJob, run_job
from hyps_compiler.checking.kept import check_places, digest_of, is_in_place, read_record
from hyps_compiler.checking.keys import result_key, software_digest
from hyps_compiler.checking.limits import Checked, judge
from hyps_compiler.checking.previous import Previous
from hyps_compiler.checking.rules import Rule
from hyps_compiler.checking.targets import Target


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How models are checked, beside what the budget says."""

    cache: Cache = field(default_factory=lambda: Cache(None))
    previous: Previous = field(default_factory=Previous)
    output: Path | None = None
    """The folder for the plans; None: they are not kept."""
    force: bool = False
    trust: bool = False
    """Whether code in models may be run."""


def check_models(
    targets: Sequence[Target],
    budget: Budget,
    options: CheckOptions,
    step: Callable[[str], None] = lambda text: None,
    done: Callable[[Checked], None] = lambda checked: None,
) -> tuple[Checked, ...]:
    """Return what was found of every model, in the order of the targets; one that is broken stops none of the others.

    Args:
        targets: the models.
        budget: how they are compiled, and what they may cost.
        options: cache, previous plans, and where plans go.
        step: called with what is being done.
        done: called with what was found of a model as soon as that is known.

    Raises:
        HypsError: the budget contradicts itself for a model, a plan cannot take its place, or the cache cannot be
            written.
    """
    rules = [budget.rule(budget.name_of(target.model, target.path)) for target in targets]
    if options.output is not None:
        places = [options.output / target.place for target in targets]
        check_places(options.output, places, force=options.force)
    software = software_digest()
    checked = []
    for target, rule in zip(targets, rules, strict=True):
        step(f"checking {printable(target.model, 60)}")
        checked.append(_check(target, rule, budget.shown, software, options))
        done(checked[-1])
    return tuple(checked)


def _check(target: Target, rule: Rule, budget: str, software: str, options: CheckOptions) -> Checked:
    start_s = time.monotonic()
    before = _previous(target, software, options)  # the new plan may take its place
    if isinstance(before, Problem):
        outcome = Outcome(problem=before)
        return Checked(target.model, rule, outcome, judge(outcome, rule, None, budget), name=target.name)
    outcome, is_cached = _outcome(target, rule, software, options)
    notes = list(outcome.facts.notes) if outcome.facts else []
    if before is None and options.previous.path is not None:
        notes.append("there is no previous plan of it")
    return Checked(
        model=target.model,
        name=target.name,
        rule=rule,
        outcome=outcome,
        verdicts=judge(outcome, rule, before, budget),
        previous=before,
        is_cached=is_cached,
        seconds=time.monotonic() - start_s,
        notes=tuple(notes),
    )


def _outcome(target: Target, rule: Rule, software: str, options: CheckOptions) -> tuple[Outcome, bool]:
    """Return what comes of a model, and whether it was known before."""
    try:
        key = result_key(target, rule.options, software, trust=options.trust)
    except OSError as error:
        message = f"`{printable(error.filename or target.model)}` cannot be read: {error.strerror}"
        return Outcome(problem=problem_of(ModelError(message, code="E_PERMISSION"))), False
    place = options.output / target.place if options.output else None
    known = options.cache.read(key, Outcome)
    if known is not None and _is_whole(known) and _is_in_place(known, place):
        return known, True
    job = ModelJob(
        model=target.model,
        options=rule.options,
        output="" if place is None else str(place),
        force=options.force,
        trust=options.trust,
    )
    outcome = run_job(job)
    if _is_lasting(outcome) and _is_still(key, target, rule, software, options):
        options.cache.write(key, outcome)
    return outcome, False


def _is_still(key: str, target: Target, rule: Rule, software: str, options: CheckOptions) -> bool:
    """Return whether the model's files are those that the key is of: someone may have written them meanwhile."""
    try:
        return result_key(target, rule.options, software, trust=options.trust) == key
    except OSError:
        return False


def _previous(target: Target, software: str, options: CheckOptions) -> PlanFacts | Problem | None:
    """Return what the model's previous plan was; a problem where there is one that cannot be read."""
    if options.previous.is_report:
        return options.previous.plan(target)
    folder = options.previous.folder(target)
    if folder is None:
        return None
    key = hashlib.sha256(f"baseline {software} {digest_of(folder)}".encode()).hexdigest()
    outcome = options.cache.read(key, Outcome)
    if outcome is None or outcome.facts is None:
        outcome = run_job(BaselineJob(folder=str(folder)))
        if outcome.facts is not None:
            options.cache.write(key, outcome)
    if outcome.facts is not None:
        record = read_record(folder)
        return msgspec.structs.replace(outcome.facts.plan, options=record.options if record else None)
    assert outcome.problem is not None
    return msgspec.structs.replace(
        outcome.problem, message=f"the previous plan is of no use: {outcome.problem.message}"
    )


def _is_whole(outcome: Outcome) -> bool:
    return (outcome.facts is None) != (outcome.problem is None)


def _is_in_place(outcome: Outcome, place: Path | None) -> bool:
    """Return whether the plan that was asked for lies where it belongs."""
    return place is None or outcome.facts is None or is_in_place(place, outcome.facts.plan.digest)


def _is_lasting(outcome: Outcome) -> bool:
    """Return whether it would come out the same again: memory, time and packages may be others tomorrow."""
    if outcome.problem is None:
        return True
    return outcome.problem.exit_status == InfeasibleError.exit_status
