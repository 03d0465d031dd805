"""Writes docs/lifecycles.md from the state machines' own tables: `python tests/lifecycles.py > docs/lifecycles.md`."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from enum import Enum

import hyps.core

Table = Mapping[tuple[Enum, Enum], Enum]

_HEAD = """# Life cycles

Every change of state that there is, drawn from the tables that the code follows (`hyps.core`). What is in no table
cannot happen, and raises an `InternalError` with the story. How the parts talk is in [protocol.md](protocol.md).
"""


def tables() -> Iterator[tuple[str, Table]]:
    """Yield every table of transitions in the core, and where it stands, in the order of the modules."""
    for module in sorted(info.name for info in pkgutil.iter_modules(hyps.core.__path__)):
        code = importlib.import_module(f"hyps.core.{module}")
        for name, value in sorted(vars(code).items()):
            if name.endswith("TRANSITIONS") and name in code.__annotations__:  # made there, not imported
                yield f"{module}.{name}", value


def page() -> str:
    """Return the whole page."""
    return _HEAD + "".join(_section(name, table) for name, table in tables())


def _section(name: str, table: Table) -> str:
    states = type(next(iter(table.values())))
    title = (states.__doc__ or "").strip().splitlines()[0]
    lines = [
        f"\n## `{name}`\n",
        f"{title}\n",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {_node(next(iter(states)))}",
    ]
    for (before, trigger), after in table.items():
        lines.append(f"    {_node(before)} --> {_node(after)}: {trigger.value}")
    ends = [state for state in states if not any(before is state for before, _ in table)]
    return "\n".join([*lines, *(f"    {_node(state)} --> [*]" for state in ends), "```\n"])


def _node(state: Enum) -> str:
    return str(state.value).replace(" ", "_").replace("-", "_")


if __name__ == "__main__":
    sys.stdout.write(page())
