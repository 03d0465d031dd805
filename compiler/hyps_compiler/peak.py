"""Runs one request of a plan under its budget, in this process alone, and prints the peak resident bytes.

What starting Python and onnxruntime has resident, before anything is known of a plan, does not count, nor does code
beyond what is reckoned for running.
"""

import signal
import sys
from pathlib import Path

from hyps.adapters.guard import become_expendable, limit_seconds
from hyps.adapters.machine import peak_rss_nbytes
from hyps.adapters.resident import OwnPeak
from hyps.adapters.sessions import Sessions
from hyps.containment import die_with_writer
from hyps.errors import HypsError
from hyps.local import LocalRunner
from hyps_compiler.arrays import read_npz, write_npz


def main() -> None:
    """Run the plan `argv[1]` on the request in `argv[2]` and write the outputs to `argv[3]`, in `argv[4]` seconds.

    A refusal goes to stderr, its sentence and its hint on a line each, with its exit status. The process ends when its
    standard input is closed; a time of 0 is no limit.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_seconds(float(sys.argv[4]) or None)
    folder, request, answer = map(Path, sys.argv[1:4])
    try:
        Sessions(None).measure_base()
        peak = OwnPeak()
        with LocalRunner(folder) as runner:
            outputs = runner.run(read_npz(request))
    except HypsError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(f"{peak.measure() or peak_rss_nbytes() or 0}\n")
    write_npz(answer, outputs)


if __name__ == "__main__":
    main()
