"""Tokens out of files: one word each, or an error that says why not."""

from pathlib import Path

import pytest

from hyps.adapters.tokens import read_token
from hyps.errors import UsageError


def test_a_token_is_one_word_without_the_space_around_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  secret \n")
    assert read_token(str(path)) == "secret"


@pytest.mark.parametrize(
    ("content", "error"),
    [(b" \n", "holds no token"), (b"x" * 4097, "holds no token"), (b"\xff\xfe", "cannot be read"), (None, "No such")],
)
def test_what_is_no_token_is_refused_with_the_file(tmp_path: Path, content: bytes | None, error: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=error) as caught:
        read_token(str(path))
    assert str(path) in caught.value.message
    assert "one long random word" in caught.value.hint
