"""Traces and faults as users write them."""

from pathlib import Path

import pytest

from hyps.errors import UsageError
from hyps_compiler.simulation_system import Down
from hyps_compiler.trace_bandwidth import parse_downs, read_trace


def test_a_trace_has_a_line_for_every_change(tmp_path: Path) -> None:
    file = tmp_path / "walk.csv"
    file.write_text(
        "time_s,link,rate\n# leaving\n\n0, a to b, 57Mbit/s\n500ms, a to b, 0\n1.5,b to a,1000\n2,a to b,7MB/s\n"
    )
    assert read_trace(file) == {"a to b": ((0.0, 7.125e6), (0.5, 0.0), (2.0, 7e6)), "b to a": ((1.5, 1000.0),)}


def test_names_with_commas_are_quoted(tmp_path: Path) -> None:
    file = tmp_path / "walk.csv"
    file.write_text('0,"a,x to b",5\n')
    assert read_trace(file) == {"a,x to b": ((0.0, 5.0),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ("0,a to b\n", "line 1 of trace `.*` has 2 columns, not 3"),
        ("0,a to b,1\nsoon,a to b,1\n", "line 2 of trace .* `soon` is no time"),
        ("0,a to b,-1\n", "line 1 of trace .* `-1` is no rate"),
        ("0,a to b,nan\n", "line 1 of trace .* `nan` is no rate"),
        ("0,a to b,57Mbt/s\n", "line 1 of trace .* `57Mbt/s` is no rate"),
        ("1,a to b,5\n1,a to b,6\n", "fall from 1 s to 1 s"),
        ("0,a to b,5\n1,a to b,0\n", "ends at 0"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "walk.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_trace(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_trace(tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="it is no text"):
        read_trace(tmp_path / "bytes.csv")


def test_faults_name_a_device_or_link_and_an_interval() -> None:
    assert parse_downs(("a:1-2", "a to b:500ms-1.5s", "a:3s-4s")) == {
        "a": (Down(1.0, 2.0), Down(3.0, 4.0)),
        "a to b": (Down(0.5, 1.5),),
    }


@pytest.mark.parametrize("text", ["", "a", "a:", "a:1", "a:1-", ":1-2", "a:x-2", "a:2-1", "a:1-1"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--down"):
        parse_downs((text,))
