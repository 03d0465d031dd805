"""Writes the command reference: `<!-- command: MODULE NAME PROGRAM -->` becomes what the command says of itself."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_MARK = re.compile(r"<!-- command: (\S+) (\S+) (\S+) -->")
_STANDARD = {"--verbose", "--quiet", "--debug", "--version", "--help"}
"""Every command has them; the page tells of them once."""


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    """Put the reference in the place of its mark."""
    return _MARK.sub(lambda found: reference(*found.groups()), markdown)


def reference(module: str, name: str, program: str) -> str:
    """Return the Markdown for the command `name` of `module`, and for those below it."""
    return "\n".join(_sections(getattr(importlib.import_module(module), name), program, None))


def _sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent)
    yield f"\n## {context.command_path}\n"
    yield from _prose(command.help or "")
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield from _options(command, context)
    yield from _prose(command.epilog or "")
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None, "it was just listed"
            yield from _sections(found, below, context)


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; those that click must not wrap, which are examples, as blocks of code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b"):
            yield f"{paragraph}\n"
            continue
        head, *lines = paragraph.splitlines()[1:]
        code = inspect.cleandoc("\n".join(["", *lines]))
        yield f"{head}\n\n```sh\n{code}\n```\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [
        param.get_help_record(context)
        for param in command.get_params(context)
        if isinstance(param, click.Option) and not _STANDARD.intersection(param.opts)
    ]
    rows = [f"| `{names}` | {_cell(words)} |" for names, words in filter(None, records)]
    if rows:
        yield from ("| option | does |", "| --- | --- |", *rows, "")


def _cell(text: str) -> str:
    """Return `text` for a cell of a table, in which a bar would begin the next one."""
    return " ".join(text.split()).replace("|", "\\|")
