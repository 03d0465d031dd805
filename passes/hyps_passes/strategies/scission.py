"""`scission`: every cut of the running order on every sequence of up to three devices, ranked.

Lockhart et al. (UCC 2020; scissionlite, section 2.1) run every block of layers on every resource and measure every
transfer, then rank all ways to spread the blocks over device, edge and cloud; users narrow the ranking by criteria,
such as a device that must take part. scissionlite (section 4.2) also keeps the first layers on the device for privacy.
The criteria are `Settings.required` and `Settings.first_cut`, and the limits of the problem. Branches are not cut in
the paper; here a cut of the running order may cross several tensors. It ranks by latency or energy; early exits are
not known.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from hyps_passes.found import Found
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.strategies.consecutive import measure_cuts
from hyps_passes.strategies.judging import first_allowed, servers, without_exits
from hyps_passes.strategies.ranking import Ranked, candidates_of, rank_cuts, rank_whole
from hyps_passes.strategies.strategy import Refusal, Settings


def place(problem: Problem, objective: Objective, settings: Settings) -> Found | Refusal:
    """Return the first of the ranking that keeps the limits."""
    ranked = ranking(problem, objective, settings)
    if not ranked:
        return Refusal("no sequence of up to three devices meets the criteria")
    sequences = 1 + len(list(_sequences(problem)))
    words = f"first of all cuts on {sequences} sequence{'s' * (sequences > 1)} of devices"
    return first_allowed(problem, objective, candidates_of(problem, ranked, words))


def ranking(problem: Problem, objective: Objective, settings: Settings) -> list[Ranked]:
    """Return the ways to cut that meet the criteria, the best first; of each sequence of devices the best thousand.

    What memory and other limits of the problem forbid still stands among them.
    """
    known = without_exits(problem)
    ranked = rank_whole(known, objective)
    for machines in _sequences(problem):
        cuts = measure_cuts(known, objective, machines)
        scores = cuts.two() if len(machines) == 2 else cuts.three()
        scores[: settings.first_cut] = np.inf
        ranked += rank_cuts(machines, scores)
    met = [cut for cut in ranked if _meets(problem, cut, settings)]
    return sorted(met, key=lambda cut: (cut.score, len(cut.machines), cut.machines, cut.positions))


def _sequences(problem: Problem) -> Iterator[tuple[int, ...]]:
    others = servers(problem)
    yield from ((problem.entry, *order) for count in (1, 2) for order in itertools.permutations(others, count))


def _meets(problem: Problem, cut: Ranked, settings: Settings) -> bool:
    """Return whether all required machines compute; the entry does not where the first cut stands before everything."""
    used = cut.machines[1:] if cut.positions[:1] == (0,) else cut.machines
    return settings.required <= {problem.machines[machine].name for machine in used}
