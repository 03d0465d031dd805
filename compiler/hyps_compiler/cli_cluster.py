"""`hypsc cluster`: a cluster file from what running workers, or the manager that they joined, tell."""

from pathlib import Path

import click

from hyps.errors import OutputError, printable
from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import PATH, print_json, require_compiler


@click.command(cls=HypsCommand)
@click.argument("endpoints", nargs=-1, required=True, metavar="ENDPOINT...")
@click.option("-o", "--output", required=True, type=PATH, help="The cluster file to write.")
@click.option("--device", default="local", show_default=True, help="Name of this machine, where requests arise.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of a partition here; default: one per core.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def cluster(
    endpoints: tuple[str, ...], output: Path, device: str, threads: int | None, force: bool, as_json: bool
) -> None:
    """Ask the workers at ENDPOINTs for memory, threads and speed, measure the ways to them, and write a cluster file.

    A manager tells of all the devices that joined it, and of the links between them that it knows. Speed is that of a
    matrix product, against this machine's; profiles measured on the devices tell more.

    \b
    Examples:
      hypsc cluster tcp://192.168.1.7:5757 -o cluster.toml --device camera
      hypsc cluster tcp://pi1:5757 tcp://pi2:5757 -o cluster.toml
      hypsc cluster tcp://manager:5757 -o cluster.toml
    """  # click's own mark
    require_compiler("onnxruntime")
    from hyps_compiler.cluster_file import cluster_toml, show_survey, survey, survey_json
    from hyps_compiler.cluster_report import ask

    if output.exists() and not (force and output.is_file()):
        raise OutputError(f"`{printable(str(output))}` exists", "add --force to replace it", code="E_EXISTS")
    with progress("asking workers", quiet=verbosity() < 0 or as_json) as bar:
        told = []
        for endpoint in endpoints:
            bar.enter(printable(endpoint, 40))
            told.append(ask(endpoint))
        peers, links = [peer for one in told for peer in one.peers], [link for one in told for link in one.links]
        found = survey(device, threads, peers, links)
    try:
        output.write_text(cluster_toml(found))
    except OSError as error:
        raise OutputError(f"`{printable(str(output))}` cannot be written: {error.strerror}") from error
    if as_json:
        print_json(survey_json(found))
    elif verbosity() >= 0:
        click.echo(show_survey(found))
    if assumed := [name for one in told for name in one.assumed]:
        say(f"not measured yet, so assumed: the links to {', '.join(printable(name, 40) for name in assumed)}")
    say(f"wrote {printable(str(output))}")
