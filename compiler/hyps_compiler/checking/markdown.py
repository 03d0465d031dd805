"""The summary for people as GitHub and GitLab show it: names from strangers stay text, whatever is in them."""

import html
import string
from collections.abc import Sequence

from hyps.errors import printable
from hyps_compiler.checking.limits import Checked, Verdict
from hyps_compiler.checking.summary import change_lines, figures, state

_PLAIN = frozenset(string.ascii_letters + string.digits + " ")
_SAFE = _PLAIN | frozenset(".,;/%()=?'\"+")
"""What means nothing in Markdown, inside of a line."""
_MARKS = {0: "✅", 3: "❌", 4: "❌"}


def to_markdown(checked: Sequence[Checked], budget: str) -> str:
    """Return a table of the models, the sentences on what is wrong, and a table of the limits of each model."""
    bad = sum(bool(one.broken) for one in checked)
    count = f"{len(checked)} model{'s' * (len(checked) != 1)}"
    head = f"{bad} of {count} not as they should be" if bad else f"{count} within the budget"
    lines = [f"## {'❌' if bad else '✅'} hypsc check: {head}", "", f"Budget: {code(budget)}", ""]
    lines += _table(
        ("", "model", "partitions", "largest", "peak memory", "difference", ""),
        [(_mark(one), code(one.model), *map(text, figures(one).values()), _state(one)) for one in checked],
        "cl" + "r" * 4 + "l",
    )
    for one in checked:
        lines += _details(one)
    return "\n".join(lines) + "\n"


def code(name: str) -> str:
    """Return a name set as code: every character that could mean something is written as its number."""
    return f"<code>{''.join(c if c in _PLAIN else _number(c) for c in printable(name))}</code>"


def text(words: str) -> str:
    """Return a sentence in which what stands between backticks is set as code and nothing else means anything."""
    pieces = words.split("`")
    if len(pieces) % 2 == 0:  # a name with a backtick in it: no piece can be told from the others
        return _plain(words)
    return "".join(code(piece) if index % 2 else _plain(piece) for index, piece in enumerate(pieces))


def _plain(words: str) -> str:
    return "".join(c if c in _SAFE else _outside(c) for c in printable(words, 2000))


def _outside(character: str) -> str:
    """Return a character by its number; one that would call a person or an issue is kept from its name."""
    number = _number(character)
    return f"{number}&#8203;" if character in "@#" else number


def _number(character: str) -> str:
    if character.isascii():
        return f"&#{ord(character)};"
    return html.escape(character)


def _mark(one: Checked) -> str:
    return _MARKS.get(one.exit_status, "💥")


def _state(one: Checked) -> str:
    return f"{state(one)}, cached" if one.is_cached else state(one)


def _details(one: Checked) -> list[str]:
    changes = change_lines(one)
    told = [f"- **{text(verdict.message)}**" for verdict in one.broken]
    told += [f"- {text(note)}" for note in one.notes]
    told += [f"- {text(line)}" for line in changes]
    limits = [verdict for verdict in one.verdicts if verdict.most or not verdict.is_kept]
    if not told and not limits:
        return []
    lines = ["", f"### {code(one.model)}", "", *told]
    return lines + (["", *_limits(limits)] if limits else [])


def _limits(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [
        (
            "✅" if v.is_kept else "❌",
            text(v.title),
            text(v.value or "-"),
            text(v.most or "-"),
            code(v.layer) if v.layer else "",
        )
        for v in verdicts
    ]
    return _table(("", "limit", "is", "allowed", "layer"), rows, "clrrl")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    rules = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [headers, [rules[side] for side in align], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
