"""The process in which a plan is run for a report: nothing but the runtime is in its memory. It prints a `Trial`."""

import contextlib
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from hyps.adapters.guard import become_expendable, limit_seconds
from hyps.containment import die_with_writer
from hyps.errors import HypsError
from hyps.local import LocalRunner
from hyps_compiler.arrays import read_npz
from hyps_compiler.explaining import explained


class Turn(Struct, frozen=True, kw_only=True):
    """What one partition took of the request."""

    id: str
    wait_s: float
    """For its weights to be there."""
    compute_s: float
    peak_bytes: int | None
    """The most that the process had resident meanwhile; None where the system does not tell."""


class Trial(Struct, frozen=True, kw_only=True):
    """One request through a plan."""

    turns: tuple[Turn, ...]
    base_bytes: int
    """What the process took without any partition."""


def main() -> None:
    """Run the plan `argv[1]` on the request in `argv[2]`, twice; the second time is told.

    Its last argument is the longest that one call may take, in seconds, 0 for no limit. A refusal goes to stderr, its
    sentence and its hint on a line each, with its exit status. The process ends when its standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    limit_seconds(float(sys.argv[3]) or None)
    try:
        told = try_out(Path(sys.argv[1]), Path(sys.argv[2]))
    except HypsError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(msgspec.json.encode(told).decode())


def try_out(folder: Path, request: Path) -> Trial:
    """Return what a request takes when the plan has been run before.

    Raises:
        HypsError: as `LocalRunner`.
    """
    feeds = read_npz(request)
    with contextlib.closing(LocalRunner(folder)) as runner:
        runner.run(feeds)
        told = explained(runner, [feeds])[1]
    turns = (
        Turn(id=share.label, wait_s=share.wait_s, compute_s=share.compute_s, peak_bytes=share.peak_nbytes)
        for share in told.shares
    )
    return Trial(turns=tuple(turns), base_bytes=told.base_nbytes)


if __name__ == "__main__":
    main()
