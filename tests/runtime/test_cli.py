"""How `hyps-worker` names itself when it starts anew."""

import pytest

from hyps.cli import _bound_to


@pytest.mark.parametrize(
    ("args", "anew"),
    [
        (["plan"], ["plan", "--bind", "tcp://a:1"]),
        (["--threads", "2", "--", "plan"], ["--threads", "2", "--bind", "tcp://a:1", "--", "plan"]),
        (["--bind", "tcp://b:0", "plan"], ["plan", "--bind", "tcp://a:1"]),
        (["--bind=tcp://b:0", "plan", "--bind", "ipc://c"], ["plan", "--bind", "tcp://a:1"]),
        (["--", "--bind=plan"], ["--bind", "tcp://a:1", "--", "--bind=plan"]),
    ],
)
def test_the_address_takes_the_place_of_any_before(args: list[str], anew: list[str]) -> None:
    assert _bound_to("tcp://a:1", args) == anew
    assert _bound_to("tcp://a:1", anew) == anew
