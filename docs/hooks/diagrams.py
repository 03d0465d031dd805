"""Shows state diagrams as tables: a browser would need a script from elsewhere to draw them, and no page loads one."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_DIAGRAM = re.compile(r"```mermaid\nstateDiagram-v2\n(.*?)```\n", re.DOTALL)
_ARROW = re.compile(r" *(\S+) --> ([^:\s]+)(?:: (.*))?")


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    """Put a table in the place of every state diagram."""
    return _DIAGRAM.sub(lambda found: table(found[1]), markdown)


def table(arrows: str) -> str:
    """Return the table that says what a diagram's arrows say."""
    rows = [_row(*found.groups("")) for found in map(_ARROW.fullmatch, arrows.splitlines()) if found]
    return "\n".join(["| in state | when | becomes |", "| --- | --- | --- |", *rows, ""])


def _row(before: str, after: str, trigger: str) -> str:
    left = "begins" if before == "[*]" else f"`{before}`"
    right = "ends" if after == "[*]" else f"`{after}`"
    return f"| {left} | {f'{trigger} ' if trigger else ''}| {right} |"
