"""Rehearses a cluster: the very state machines of manager and nodes, in virtual time, with faults drawn from a seed.

`python -m hyps_compiler.rehearsal --seed N --count M` rehearses M times and stops at the first broken promise; then it
says what was drawn, which faults are needed, and how to see the story. The status is 0 where all promises held.
"""

import sys
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import click

from hyps.errors import HypsError
from hyps_compiler.rehearsal.options import FAULTS, Options, draw_options
from hyps_compiler.rehearsal.story import BrokenPromiseError, Story
from hyps_compiler.rehearsal.talk import rehearse_talk
from hyps_compiler.rehearsal.world import World

_SHOWN_LINES = 400


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a rehearsal."""

    seed: int
    broken: str
    """Which promise; empty: none."""
    trace: int
    """Over all that happened; equal for equal seeds."""
    counts: dict[str, int]
    simulated_s: float
    lines: tuple[str, ...] = ()
    """The story, where it was asked for."""


def rehearse(seed: int, *, without: Collection[str] = (), is_told: bool = False) -> Outcome:
    """Rehearse once, without some kinds of faults."""
    return rehearse_with(draw_options(seed).without(without), is_told=is_told)


def rehearse_with(options: Options, *, is_told: bool = False) -> Outcome:
    """Rehearse once with these options."""
    story = Story(is_told=is_told)
    world = World(options, story)
    broken = ""
    try:
        world.run()
    except BrokenPromiseError as error:
        broken = str(error)
    except Exception as error:  # that no handler raises, whatever it is, is one of the promises
        broken = f"{type(error).__name__}: {error}"
    return Outcome(options.seed, broken, story.trace, story.counts, world.agenda.now_s, tuple(story.lines))


def needed_faults(seed: int) -> list[str]:
    """Return the faults without which the rehearsal of a failing seed does not fail; the others are not needed."""
    needed = set(draw_options(seed).faults)
    for name in sorted(needed):
        fewer = needed - {name}
        if rehearse(seed, without=set(FAULTS) - fewer).broken:
            needed = fewer
    return sorted(needed)


@click.command()
@click.option("--seed", default=0, show_default=True, help="The first seed.")
@click.option("--count", default=1, show_default=True, help="How many seeds.")
@click.option("--without", multiple=True, type=click.Choice(FAULTS), help="A kind of fault to leave out.")
@click.option("--show", is_flag=True, help="Tell the story of the first seed.")
@click.option("--links", is_flag=True, help="Rehearse the two ends of one link instead of a cluster.")
@click.option("--keep-going", is_flag=True, help="Go on behind a broken promise.")
@click.option("--quiet", is_flag=True, help="Only say which promise was broken.")
def main(
    seed: int, count: int, without: tuple[str, ...], show: bool, links: bool, keep_going: bool, quiet: bool
) -> None:
    """Rehearse a cluster with faults drawn from seeds, or the links of one."""
    start_s = time.perf_counter()
    simulated_s, failed = 0.0, 0
    counts: Counter[str] = Counter()
    for number in range(seed, seed + count):
        is_told = show and number == seed
        outcome = (
            _rehearse_link(number, is_told=is_told) if links else rehearse(number, without=without, is_told=is_told)
        )
        simulated_s += outcome.simulated_s
        counts.update(outcome.counts)
        if is_told:
            click.echo("\n".join(outcome.lines))
        if outcome.broken:
            failed += 1
            click.echo(f"seed {number}: {outcome.broken}"[:2000])
            if not keep_going:
                break
    seconds = time.perf_counter() - start_s
    done = number - seed + 1
    if failed and not keep_going and not links and not quiet:
        click.echo(draw_options(number).without(without).expanded())
        click.echo(f"needed: {', '.join(needed_faults(number)) or 'no faults at all'}")
        click.echo(f"the story: python -m hyps_compiler.rehearsal --seed {number} --show")
    told = {kind: n for kind, n in sorted(counts.items()) if kind.startswith(("fault ", "request "))}
    click.echo(f"{done} rehearsals, {failed} failed, {done / seconds:.0f}/s, {simulated_s / 3600:.2f} h simulated")
    click.echo(", ".join(f"{kind} {n}" for kind, n in told.items()))
    sys.exit(1 if failed else 0)


def _rehearse_link(seed: int, *, is_told: bool) -> Outcome:
    story = Story(is_told=is_told)
    broken = ""
    try:
        simulated_s = rehearse_talk(seed, story)
    except (BrokenPromiseError, HypsError) as error:
        broken, simulated_s = f"{type(error).__name__}: {error}", 0.0
    return Outcome(seed, broken, story.trace, story.counts, simulated_s, tuple(story.lines))
