"""Logs as JSON lines: every line is an object of its own, whatever is logged."""

import io
import json
import logging
import math
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.adapters.logs import JsonLines, json_handler


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> Iterator[logging.Logger]:
    made = logging.getLogger("hyps.test")
    made.setLevel(logging.DEBUG)
    made.addHandler(json_handler(stream, "pi"))
    yield made
    made.handlers.clear()
    made.setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_tells_when_what_and_about_which(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("ran %s", "conv1", extra={"request": 7, "partition": "conv1", "seconds": 0.25, "device": "pi-2"})
    (told,) = lines(stream)
    assert list(told) == ["time", "level", "logger", "message", "request", "partition", "device", "seconds"]
    assert told["message"] == "ran conv1"
    assert (told["level"], told["logger"]) == ("info", "hyps.test")
    assert (told["request"], told["partition"], told["device"], told["seconds"]) == (7, "conv1", "pi-2", 0.25)
    assert abs(datetime.fromisoformat(told["time"]).timestamp() - datetime.now().timestamp()) < 60


def test_the_own_device_is_told_where_none_is_named(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("no room")
    assert lines(stream)[0]["device"] == "pi"


def test_an_exception_stays_on_the_line(logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("broke")
    (told,) = lines(stream)
    assert told["exception"].endswith("ValueError: two\nlines\n")
    assert "Traceback" in told["exception"]


def test_figures_that_json_does_not_know_are_words(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("x", extra={"a": math.nan, "b": math.inf, "c": None, "d": True, "e": ("a", 1), "f": b"\xff"})
    told = lines(stream)[0]
    assert [told[name] for name in "abcdef"] == ["nan", "inf", None, True, "('a', 1)", "b'\\xff'"]


def test_endless_messages_are_cut(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("x" * 10**6, extra={"request": "y" * 10**6})
    assert len(stream.getvalue()) < 50_000


@given(st.text(), st.text())
def test_every_record_is_one_line(message: str, value: str) -> None:
    record = logging.LogRecord("hyps", logging.INFO, "", 0, "%s", (message,), None)
    record.request = value
    line = JsonLines().format(record)
    assert len(line.splitlines()) == 1
    told = json.loads(line)
    assert (told["message"], told["request"]) == (message, value)


def test_without_an_exception_there_is_none() -> None:
    record = logging.LogRecord("hyps", logging.INFO, "", 0, "x", (), sys.exc_info())
    assert "exception" not in json.loads(JsonLines().format(record))
