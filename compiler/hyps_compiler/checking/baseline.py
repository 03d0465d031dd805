"""The process in which the plan to compare with is read; it imports onnx and nothing that compiles."""

import sys
from pathlib import Path

import msgspec

from hyps.containment import die_with_writer
from hyps.errors import HypsError
from hyps_compiler.checking.facts import Facts, Outcome, problem_of
from hyps_compiler.checking.job import BaselineJob
from hyps_compiler.checking.reading import read_facts


def main() -> None:
    """Do the `BaselineJob` in the file `argv[1]`, and write its `Outcome` as JSON to the file `argv[2]`.

    The process ends when its standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=BaselineJob)
    try:
        outcome = Outcome(facts=Facts(plan=read_facts(Path(job.folder))))
    except HypsError as error:
        outcome = Outcome(problem=problem_of(error))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
