"""The process that searches new placements, as a manager runs it."""

import subprocess
import sys
import time

import pytest

from hyps.formats.replanning import Answer, Question, Refusal, Reply, decode_reply, encode_line
from hyps_compiler.replanning import reply_to
from replanning_fixtures import chain

QUESTION = chain((0.1, 0.2, 0.1), {"a": 1, "b": 2})
TOO_LARGE = chain((0.1, 0.2, 0.1), {"a": 1}, memory_bytes=6 * 10**7)


def _run(data: bytes, *options: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-P", "-m", "hyps_compiler.replanning", *options]
    return subprocess.run(command, input=data, capture_output=True, timeout=20, check=False)


def test_a_question_on_stdin_is_answered_on_stdout() -> None:
    done = _run(encode_line(QUESTION))

    reply = decode_reply(done.stdout)
    assert done.returncode == 0
    assert done.stderr == b""
    assert isinstance(reply, Answer)
    assert set(reply.placement.values()) == {"b"}


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [(encode_line(TOO_LARGE), 3, "E_INFEASIBLE"), (b"{}", 2, "E_QUESTION"), (b"", 2, "E_QUESTION")],
)
def test_a_refusal_has_its_exit_status_and_its_sentence(data: bytes, status: int, code: str) -> None:
    done = _run(data)

    reply = decode_reply(done.stdout)
    assert done.returncode == status
    assert isinstance(reply, Refusal)
    assert reply.code == code
    assert done.stderr.decode().splitlines()[0] == f"error: {reply.message}"


def test_a_server_answers_line_after_line_until_stdin_ends() -> None:
    lines = [encode_line(QUESTION), b'{"number": 9}\n', b"nonsense\n", encode_line(TOO_LARGE)]

    done = _run(b"".join(lines), "--serve")

    replies = [decode_reply(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [(type(reply), reply.number) for reply in replies] == [
        (Answer, 1),
        (Refusal, 9),
        (Refusal, -1),
        (Refusal, 1),
    ]


def test_a_limit_on_memory_is_kept() -> None:
    done = _run(encode_line(QUESTION), "--address-space", str(10**7))

    assert done.returncode != 0
    assert b'"answer"' not in done.stdout


def test_a_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(question: Question) -> Reply:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("hyps_passes.replacing.place_again", fail)

    reply, status = reply_to(encode_line(QUESTION))

    assert status == 70
    assert isinstance(reply, Refusal)
    assert (reply.number, reply.code) == (1, "E_INTERNAL")
    assert "ZeroDivisionError: division\\nby zero" in reply.message


def test_no_compilers_package_is_needed() -> None:
    heavy = ("onnx", "onnx_ir", "networkx", "ortools", "onnxruntime", "ml_dtypes")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({heavy}))"
    call = "from hyps_compiler.replanning import main; sys.exit(main())"

    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{blocked}; {call}"],
        input=encode_line(QUESTION),
        capture_output=True,
        timeout=20,
        check=False,
    )

    assert isinstance(decode_reply(done.stdout), Answer), done.stderr.decode()


@pytest.mark.slow
def test_thirty_partitions_on_eight_devices_take_less_than_a_second() -> None:
    """Aim: half a second from start to answer, a few times as much on a busy machine."""
    speeds = {f"d{i}": 1.0 + i / 4 for i in range(8)}
    question = chain(tuple(0.01 * (1 + i % 7) for i in range(30)), speeds, aim="throughput")
    start_s = time.monotonic()

    reply = decode_reply(_run(encode_line(question)).stdout)

    assert isinstance(reply, Answer)
    assert time.monotonic() - start_s < 1.5
