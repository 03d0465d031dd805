"""`python -m hyps_compiler.replanning`: asked on stdin where partitions shall run, it replies on stdout, in JSON lines.

With `--serve` line after line until stdin ends, so that nobody waits for the imports again. Needs numpy and msgspec, no
compiler's packages. A manager runs it as a child (`hyps.adapters.planner`).
"""

import argparse
import resource
import signal
import sys
from typing import BinaryIO

import msgspec

from hyps.errors import HypsError, InternalError, printable
from hyps.formats.replanning import (
    MAX_QUESTION_NBYTES,
    Question,
    Refusal,
    Reply,
    decode_question,
    encode_line,
)

_GRACE_S = 30.0
"""Beyond its time limit a search that nobody ends is ended by the system."""


class _Number(msgspec.Struct):
    number: int = -1


def reply_to(line: bytes) -> tuple[Reply, int]:
    """Return the reply to one line, and the status a process ends with that had nothing else to do."""
    try:
        question = decode_question(line)
        return _searched(question), 0
    except HypsError as error:
        return Refusal(number=_number(line), code=error.code, message=error.message, hint=error.hint), error.exit_status
    except Exception as error:  # this process's top: whatever it was, the manager must be told
        bug = InternalError(f"the search for a placement failed: {type(error).__name__}: {printable(str(error), 300)}")
        return Refusal(number=_number(line), code=bug.code, message=bug.message), bug.exit_status


def main() -> int:
    """Answer stdin on stdout and return the exit status."""
    options = _options()
    if options.address_space:
        resource.setrlimit(resource.RLIMIT_AS, (options.address_space, options.address_space))
    if options.serve:
        _serve(sys.stdin.buffer, sys.stdout.buffer)
        return 0
    reply, status = reply_to(sys.stdin.buffer.read(MAX_QUESTION_NBYTES + 1))
    sys.stdout.buffer.write(encode_line(reply))
    if isinstance(reply, Refusal):
        hint = f"hint: {reply.hint}\n" if reply.hint else ""
        sys.stderr.write(f"error: {reply.message}\n{hint}")
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hyps_compiler.replanning", description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="answer line after line until stdin ends")
    parser.add_argument("--address-space", type=int, metavar="BYTES", help="take no more address space than this")
    return parser.parse_args()


def _serve(questions: BinaryIO, replies: BinaryIO) -> None:
    import hyps_passes.replacing  # noqa: F401  # before the first question, which then waits for nothing

    while line := questions.readline(MAX_QUESTION_NBYTES + 1):
        replies.write(encode_line(reply_to(line)[0]))
        replies.flush()


def _searched(question: Question) -> Reply:
    from hyps_passes.replacing import place_again

    signal.setitimer(signal.ITIMER_REAL, question.time_limit_s + _GRACE_S)  # whoever asked may be gone
    try:
        return place_again(question)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _number(line: bytes) -> int:
    """Return the number of a question that may be no question."""
    try:
        return msgspec.json.decode(line, type=_Number).number
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return -1


if __name__ == "__main__":
    sys.exit(main())
