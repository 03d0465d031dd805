"""`hypsc check`: models against a budget, for continuous integration."""

from pathlib import Path
from typing import Any

import click

from hyps.errors import UsageError, printable
from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import PATH, print_json, require_compiler


@click.command(cls=HypsCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL|FOLDER...")
@click.option("--budget", required=True, type=PATH, help="A budget.toml: how models are compiled, and what is allowed.")
@click.option("--previous", type=PATH, help="The plan or plans to compare with, or what an earlier --json printed.")
@click.option("-o", "--output", type=PATH, help="A folder to keep the plans in, one folder for each model.")
@click.option("--cache", "cache_folder", type=PATH, help="Where results are kept; default: the user's cache folder.")
@click.option("--no-cache", is_flag=True, help="Check every model anew, and keep no results.")
@click.option("--trust", is_flag=True, help="Convert sources that run code when they are read, such as pickles.")
@click.option("--force", is_flag=True, help="Replace existing plans in the folder of -o.")
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
    """
    require_compiler()
    if no_cache and cache_folder is not None:
        raise UsageError("--cache and --no-cache contradict each other", "give one of them")
    from hyps_compiler.checking import summary
    from hyps_compiler.checking.budget import read_budget
    from hyps_compiler.checking.cache import Cache, default_folder
    from hyps_compiler.checking.check import CheckOptions, check_models
    from hyps_compiler.checking.previous import open_previous
    from hyps_compiler.checking.reports import write_reports
    from hyps_compiler.checking.targets import find_targets
    from hyps_compiler.output import check_apart

    rules = read_budget(budget)
    targets = find_targets(models)
    for path in filter(None, reports.values()):
        check_apart(path, budget, *(target.path for target in targets))
    options = CheckOptions(
        cache=Cache(None if no_cache else cache_folder or default_folder()),
        previous=open_previous(previous, targets),
        output=output,
        force=force,
        trust=trust,
    )
    for pattern in rules.unused([rules.name_of(target.model, target.path) for target in targets]):
        say(f'note: `models."{printable(pattern)}"` of the budget fits none of the models')
    with progress("checking", quiet=verbosity() < 0 or as_json) as bar:
        checked = check_models(targets, rules, options, bar.enter)
    write_reports(checked, budget, reports)
    if as_json:
        print_json(summary.as_json(checked, str(budget)))
    elif verbosity() >= 0 or summary.exit_status(checked):
        click.echo(summary.show(checked))
    return summary.exit_status(checked)
