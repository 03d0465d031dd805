"""Whatever is handed to the commands, the answer is one sentence and an exit status, and nothing is left behind."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from hostile.case import Outcome, check, run_case
from hostile.table import CASES, SLOW

WORKERS = 2
"""Commands run at once: most of their time they import."""


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, "Future[Outcome]"]]:
    """Run the commands of all selected cases, a few at once."""
    chosen = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path and "name" in item.callspec.params
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        yield {name: pool.submit(run_case, CASES[name], tmp_path_factory.mktemp("case")) for name in chosen}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, outcomes: dict[str, "Future[Outcome]"]) -> None:
    check(CASES[name], outcomes[name].result())
