"""`hypsc check`: models against a budget, for continuous integration."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from hyps.errors import UsageError, printable
from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import PATH, print_json, require_compiler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hyps_compiler.checking.budget import Budget
    from hyps_compiler.checking.check import CheckOptions
    from hyps_compiler.checking.limits import Checked
    from hyps_compiler.checking.previous import Previous
    from hyps_compiler.checking.targets import Target

_MOST_LISTED = 3


@click.command(cls=HypsCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL|FOLDER...")
@click.option("--budget", required=True, type=PATH, help="A budget.toml: how models are compiled, and what is allowed.")
@click.option("--previous", type=PATH, help="The plan or plans to compare with, or what an earlier --json printed.")
@click.option("-o", "--output", type=PATH, help="A folder to keep the plans in, one folder for each model.")
@click.option("--cache", "cache_folder", type=PATH, help="Where results are kept; default: the user's cache folder.")
@click.option("--no-cache", is_flag=True, help="Check every model anew, and keep no results.")
@click.option("--trust", is_flag=True, help="Convert sources that run code when they are read, such as pickles.")
@click.option("--force", is_flag=True, help="Replace plans in the folder of -o that no check wrote, too.")
@click.option("--markdown", type=PATH, help="Write a summary for people there, as GitHub shows it.")
@click.option("--junit", type=PATH, help="Write JUnit XML there.")
@click.option("--sarif", type=PATH, help="Write SARIF 2.1.0 there.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def check(
    models: tuple[str, ...],
    budget: Path,
    previous: Path | None,
    output: Path | None,
    cache_folder: Path | None,
    no_cache: bool,
    trust: bool,
    force: bool,
    as_json: bool,
    **reports: Any,
) -> int:
    """Convert, compile and verify models, and compare them with a budget and an earlier plan.

    MODEL is whatever `hypsc compile` takes; a FOLDER is searched for models. Each is checked in a process of its own,
    and what is known from before is not done again. The exit status is that of the worst model: 1 where one cannot be
    compiled, else 4 where outputs differ, else 3 where a limit is passed, else 0.

    \b
    Examples:
      hypsc check models/ --budget budget.toml
      hypsc check model.onnx --budget budget.toml --previous plans/
      hypsc check models/ --budget budget.toml --markdown check.md --junit check.xml --sarif check.sarif

    \b
    A budget:
      [defaults]                        # how models are compiled
      memory = "256MB"
      [limits]                          # what must not be passed
      partition_bytes = "64MB"
      [growth]                          # against the previous plan
      peak_memory = "5%"
      [models."models/vision/*.onnx"]   # what differs for some, by their paths from the budget's folder
      cut = "pooling"
    """
    require_compiler()
    if no_cache and cache_folder is not None:
        raise UsageError("--cache and --no-cache contradict each other", "give one of them")
    from hyps_compiler.checking import summary
    from hyps_compiler.checking.budget import read_budget
    from hyps_compiler.checking.cache import Cache, default_folder
    from hyps_compiler.checking.check import CheckOptions
    from hyps_compiler.checking.previous import open_previous
    from hyps_compiler.checking.reports import check_reports, write_reports
    from hyps_compiler.checking.targets import find_targets

    rules = read_budget(budget)
    targets = find_targets(models, rules.name_of)
    check_reports(reports)
    options = CheckOptions(
        cache=Cache(None if no_cache else cache_folder or default_folder()),
        previous=open_previous(previous, targets),
        output=output,
        force=force,
        trust=trust,
    )
    names = [target.name for target in targets]
    for pattern in rules.unused(names):
        say(
            f'note: `models."{printable(pattern)}"` of the budget fits none of the models; their paths from its folder'
            f" are such as `{printable(names[0])}`"
        )
    checked = _checked(targets, rules, options, as_json=as_json)
    _say_what_was_not_judged(checked, options.previous)
    write_reports(checked, budget, reports)
    if as_json:
        print_json(summary.as_json(checked, str(budget)))
    elif verbosity() >= 0 or summary.exit_status(checked):
        click.echo(summary.show(checked, _width(sys.stdout)))
    return summary.exit_status(checked)


def _checked(
    targets: "Sequence[Target]", rules: "Budget", options: "CheckOptions", *, as_json: bool
) -> "Sequence[Checked]":
    """Check the models; where that is stopped, tell of those that are done."""
    from hyps_compiler.checking import summary
    from hyps_compiler.checking.check import check_models

    done: list[Checked] = []

    def note(one: "Checked") -> None:
        done.append(one)
        if len(targets) > 1 and not sys.stderr.isatty():
            say(f"{len(done)} of {len(targets)}: {summary.line(one)}")

    try:
        with progress("checking", quiet=verbosity() < 0 or as_json) as bar:
            return check_models(targets, rules, options, bar.enter, note)
    finally:
        if done and len(done) < len(targets):
            say(f"{summary.show(done, _width(sys.stderr))}, and {len(targets) - len(done)} not checked")


def _say_what_was_not_judged(checked: "Sequence[Checked]", previous: "Previous") -> None:
    """Tell of growth that is limited and was not compared with anything."""
    if previous.path is None:
        if any(one.rule.growth for one in checked):
            say("note: growth was not judged: no previous plan was given with --previous")
        return
    lost = [f"`{printable(one.name)}`" for one in checked if one.previous is None and one.outcome.facts is not None]
    if lost:
        there = [f"`{printable(name)}`" for name in previous.names()]
        say(
            f"warning: `{printable(str(previous.path))}` holds no plan of {len(lost)} of {len(checked)} models, whose"
            f" growth is not judged: {_listed(lost)}; it holds {_listed(there) if there else 'none at all'}"
        )


def _listed(words: list[str]) -> str:
    more = len(words) - _MOST_LISTED
    return ", ".join(words[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _width(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream goes to; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if stream.isatty() else None
