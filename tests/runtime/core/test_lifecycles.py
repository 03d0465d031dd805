"""What the docs show of life cycles is what the code does, and no state is there for nothing."""

from pathlib import Path

import pytest

from lifecycles import Table, page, tables

PAGE = Path(__file__).parents[3] / "docs" / "lifecycles.md"


def test_the_page_shows_the_tables_as_they_are() -> None:
    assert page() == PAGE.read_text(), "generate docs/lifecycles.md again: python tests/lifecycles.py"


@pytest.mark.parametrize(("name", "table"), list(tables()), ids=[name for name, _ in tables()])
def test_every_state_can_be_reached_from_the_first(name: str, table: Table) -> None:
    states = list(type(next(iter(table.values()))))
    reached = {states[0]}
    for _ in states:
        reached |= {after for (state, _), after in table.items() if state in reached}
    assert reached == set(states), name
