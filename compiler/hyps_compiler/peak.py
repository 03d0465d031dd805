"""Runs one request of a plan under its budget, in this process alone, and prints the peak resident bytes."""

import sys
from pathlib import Path

from hyps.adapters.machine import peak_rss_nbytes
from hyps.errors import HypsError
from hyps.local import LocalRunner
from hyps_compiler.arrays import read_npz, write_npz


def main() -> None:
    """Run the plan `argv[1]` on the request in `argv[2]` and write the outputs to `argv[3]`.

    A refusal goes to stderr, its sentence and its hint on a line each, with its exit status.
    """
    folder, request, answer = map(Path, sys.argv[1:])
    try:
        with LocalRunner(folder) as runner:
            outputs = runner.run(read_npz(request))
    except HypsError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(f"{peak_rss_nbytes() or 0}\n")
    write_npz(answer, outputs)


if __name__ == "__main__":
    main()
