"""Reduces a difference between plan and model to the smallest cut that still shows it, by delta debugging.

A trial gives both sides the uncut model's values of some tensors and compares what they make of these up to one other
tensor. The fewer tensors are left to be computed in between, the smaller are the two models. Borders come first, which
leaves few partitions; those are joined where no border between them matters; then come the tensors inside.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyps.errors import HypsError
from hyps_compiler.compare import Difference, compare
from hyps_compiler.measure import Feeds
from hyps_compiler.oracle import expose, open_piece, told
from hyps_compiler.ort import Level, run
from hyps_compiler.subgraphs import Model, Piece, can_be_given, merged

_TARGETS_TRIED = 16

Test = Callable[[frozenset[str]], bool]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A difference that has been seen, and all that may have to do with it."""

    whole: Model
    """What is right; every tensor in `borders` is one of its."""
    parts: tuple[Model, ...]
    """What is wrong: models that are run one after another, the last of which makes `target`."""
    target: str
    borders: tuple[str, ...]
    """The tensors between the parts that the whole has too."""
    request: Feeds
    is_right: Callable[[Difference], bool]
    level: Level = "none"
    """The graph optimizations with which the parts show it."""
    fails: bool = False
    """Whether onnxruntime fails on the parts; otherwise they run and something differs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One attempt: two models, what they were given, and what they made of it."""

    whole: tuple[Model, Piece]
    parts: tuple[tuple[Model, Piece], ...]
    given: Mapping[str, Any]
    made: Mapping[str, Any]
    """What the parts hand to each other, and the target."""
    expected: Any
    actual: Any
    difference: Difference
    failure: str


@dataclass(frozen=True, slots=True)
class Reduced:
    """The smallest attempt that still differs."""

    suspect: Suspect
    trial: Trial
    target: str
    trials: int
    is_minimal: bool
    """Whether no smaller one differs; otherwise the time was up."""
    nodes_before: int

    @property
    def nodes(self) -> int:
        """How many nodes are left in the parts."""
        return sum(len(piece.nodes) for _, piece in self.trial.parts)


def reduce_difference(suspect: Suspect, *, limit_s: float, step: Callable[[str], None]) -> Reduced | None:
    """Return the smallest difference inside `suspect`; None where it cannot be shown outside the whole plan.

    Args:
        suspect: what differs.
        limit_s: seconds after which the smallest one so far is returned.
        step: called with what is being tried.
    """
    reducer = _Reducer(suspect, time.monotonic() + limit_s, step)
    reducer.reduce_borders()
    if reducer.best is None:
        return None
    try:
        reducer.join_parts()
        reducer.advance_target()
        reducer.reduce_inside()
    except _TimeUpError:
        reducer.is_minimal = False
    before = sum(len(model.proto.graph.node) for model in suspect.parts)
    return Reduced(suspect, reducer.best, reducer.target, reducer.trials, reducer.is_minimal, before)


def minimize(items: Sequence[str], is_wrong: Test) -> frozenset[str]:
    """Return a subset of `items` for which `is_wrong` holds and for no subset with one item less.

    `is_wrong` must hold for all of them. It is Zeller's ddmin, the empty set first.
    """
    if is_wrong(frozenset()):
        return frozenset()
    left, pieces = list(items), 2
    while len(left) > 1:
        chunks = [left[len(left) * i // pieces : len(left) * (i + 1) // pieces] for i in range(pieces)]
        subsets = [[item for item in left if item not in chunk] for chunk in chunks]
        smaller = next((s for s in (*chunks, *subsets) if 0 < len(s) < len(left) and is_wrong(frozenset(s))), None)
        if smaller is not None:
            pieces = 2 if smaller in chunks else max(pieces - 1, 2)
            left = smaller
        elif pieces >= len(left):
            break
        else:
            pieces = min(len(left), 2 * pieces)
    return frozenset(left)


class _TimeUpError(Exception):
    """The time for reduction is over."""


@dataclass
class _Reducer:
    suspect: Suspect
    deadline_s: float
    step: Callable[[str], None]
    best: Trial | None = None
    trials: int = 0
    is_minimal: bool = True
    parts: tuple[Model, ...] = ()
    target: str = ""
    given: frozenset[str] = frozenset()
    """The tensors that the smallest trial so far was given, or could have been."""
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts, self.target = self.suspect.parts, self.suspect.target

    def reduce_borders(self) -> None:
        """Find the fewest borders that must be left to the plan's own run."""
        borders = self._learn(self.suspect.borders)
        given = frozenset(self.suspect.request)

        def is_wrong(own: frozenset[str]) -> bool:
            return self._try(self.parts, self.target, given | (borders - own))

        try:
            if is_wrong(frozenset()):
                own: frozenset[str] = frozenset()
            elif not is_wrong(borders):
                return
            else:
                own = minimize(sorted(borders), is_wrong)
        except _TimeUpError:
            self.is_minimal = False
            return
        self.given = given | (borders - own)
        if self.best is not None:
            self.parts = tuple(model for model, _ in self.best.parts)

    def join_parts(self) -> None:
        """Join partitions that follow each other as long as the difference stays: those borders do not matter."""
        index = 0
        while index + 1 < len(self.parts):
            one = merged(*self.parts[index : index + 2])
            joined = self.parts if one is None else (*self.parts[:index], one, *self.parts[index + 2 :])
            if one is not None and self._try(joined, self.target, self.given):
                self.parts = joined
            else:
                index += 1

    def advance_target(self) -> None:
        """Find the first tensor that differs."""
        names = self._inner()
        wrong = self._first_failing(names) if self.suspect.fails else self._differing(names)
        for name in wrong[:_TARGETS_TRIED]:
            if name != self.target and self._try(self.parts, name, self.given):
                self.target = name
                return

    def reduce_inside(self) -> None:
        """Find the fewest inner tensors that must be computed."""
        inner = self._learn([name for name in self._inner() if name != self.target])
        outer = self.given
        own = minimize(sorted(inner), lambda names: self._try(self.parts, self.target, outer | (inner - names)))
        self.given = outer | (inner - own)

    def _inner(self) -> list[str]:
        """Return what is computed on the way to the target, in running order, as far as the whole has it."""
        assert self.best is not None
        made = [name for _, piece in self.best.parts for node in piece.nodes for name in node.output]
        return [name for name in dict.fromkeys(made) if name in self.suspect.whole.makers]

    def _learn(self, names: Collection[str]) -> frozenset[str]:
        """Return which of the whole's tensors can be given, and keep their values."""
        session = expose(self.suspect.whole, names)
        wanted = [name for name in names if name in told(session) and name in self.suspect.whole.makers]
        made = run(session, wanted, self.suspect.request) if wanted else {}
        self.values.update({name: value for name, value in made.items() if can_be_given(value)})
        self.values.update(self.suspect.request)
        return frozenset(name for name in wanted if name in self.values)

    def _differing(self, names: Sequence[str]) -> list[str]:
        """Return which of the tensors differ when all are told at once."""
        assert self.best is not None
        store: dict[str, Any] = dict(self.best.given)
        found = []
        self._learn(names)
        try:
            for model, piece in self.best.parts:
                every = [name for node in piece.nodes for name in node.output if name]
                outputs = list(dict.fromkeys((*piece.outputs, *every)))
                whole = model.piece(outputs, piece.inputs)
                session = open_piece(model, whole, store, self.suspect.level)
                wanted = [name for name in outputs if name in told(session)]
                store.update(run(session, wanted, {name: store[name] for name in whole.inputs}))
        except HypsError:  # what cannot be told all at once is not narrowed
            return []
        for name in names:
            if name in store and name in self.values:
                difference = compare(name, self.values[name], store[name])
                found += [] if self.suspect.is_right(difference) else [name]
        return found

    def _first_failing(self, names: Sequence[str]) -> list[str]:
        """Return the first tensor on the way to which onnxruntime fails."""
        low, high = -1, len(names) - 1
        while high - low > 1:
            middle = (low + high) // 2
            fails = self._try(self.parts, names[middle], self.given, keep=False)
            low, high = (low, middle) if fails else (middle, high)
        return [names[high]] if names else []

    def _try(self, parts: Sequence[Model], target: str, given: frozenset[str], keep: bool = True) -> bool:
        """Return whether whole and parts differ in `target`; the last that did is the best."""
        if time.monotonic() > self.deadline_s and self.best is not None:
            raise _TimeUpError
        self.trials += 1
        self.step(f"reducing, trial {self.trials}")
        trial = self._trial(parts, target, given)
        if trial is None:
            return False
        differs = bool(trial.failure) if self.suspect.fails else not (trial.failure or self._is_right(trial))
        if differs and keep:
            self.best = trial
        return differs

    def _is_right(self, trial: Trial) -> bool:
        return self.suspect.is_right(trial.difference)

    def _trial(self, parts: Sequence[Model], target: str, given: frozenset[str]) -> Trial | None:
        """Run both sides; None where the whole cannot be run that way, or the parts do not lead to the target."""
        pieces = _pieces(parts, target, given)
        whole = self.suspect.whole, self.suspect.whole.piece([target], given)
        if pieces is None or not all(name in self.values for name in whole[1].inputs):
            return None
        store = {name: self.values[name] for name in given if name in self.values}
        try:
            expected = _run(*whole, store, "none")[target]
        except HypsError:
            return None
        made: dict[str, Any] = {}
        failure = ""
        used = {name for _, piece in (whole, *pieces) for name in piece.inputs}
        try:
            for model, piece in pieces:
                made.update(_run(model, piece, {**store, **made}, self.suspect.level))
        except HypsError as error:
            failure = error.message.split(": ", 1)[-1].rstrip(".")
        actual = made.get(target)
        difference = compare(target, expected, actual)
        known = {name: self.values[name] for name in sorted(used) if name in given}
        return Trial(whole, pieces, known, made, expected, actual, difference, failure)


def _pieces(parts: Sequence[Model], target: str, given: frozenset[str]) -> tuple[tuple[Model, Piece], ...] | None:
    """Return which piece of which part is needed for the target; None where something is made by none."""
    needed, found = {target}, []
    for model in reversed(parts):
        mine = [name for name in model.made() if name in needed]
        if not mine:
            continue
        fed = given | {value.name for value in model.proto.graph.input}
        piece = model.piece(mine, fed - set(mine))
        found.append((model, piece))
        needed = (needed - set(mine)) | {name for name in piece.inputs if name not in given}
    return None if needed else tuple(reversed(found))


def _run(model: Model, piece: Piece, values: Mapping[str, Any], level: Level) -> dict[str, Any]:
    session = open_piece(model, piece, values, level)
    return run(session, piece.outputs, {name: values[name] for name in piece.inputs})
