"""Tokens that a manager and its nodes share, each in a file that only they can read."""

from hyps.errors import UsageError, printable

_MAX_TOKEN_NBYTES = 4096
_HINT = "it holds one long random word, the same for the manager and its workers"


def read_token(path: str) -> str:
    """Return the token that a file holds, without the white space around it.

    Raises:
        UsageError: there is no such file, or no word of at most 4096 characters in it.
    """
    shown = printable(path)
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(_MAX_TOKEN_NBYTES + 1).strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"the token file `{shown}` cannot be read: {printable(str(error))}", _HINT) from error
    if not token or len(token) > _MAX_TOKEN_NBYTES:
        raise UsageError(f"the token file `{shown}` holds no token", _HINT)
    return token
