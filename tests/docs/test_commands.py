"""What README, tutorials and guides tell people to type is typed, and does what they say."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from page_fixtures import ROOT, Block, Run, blocks, shown_is_said, steps

QUICK = ("README.md", "docs/start/install.md", "docs/start/five-minutes.md", "docs/tutorial/zoo.md")
SLOW = (
    "docs/guides/memory.md",
    "docs/guides/devices.md",
    "docs/guides/measure.md",
    "docs/guides/differences.md",
    "docs/guides/securing.md",
)
KERAS = "docs/tutorial/keras.md"
READ_ONLY = ("docs/guides/raspberry-pi.md",)
"""Pages about other machines: all of their blocks say why they are not run."""

NOT_RUN = {
    "needs the package index": 2,
    "clones over the network": 1,
    "on the device": 6,
}
"""Every reason for not running a block, and how many have it; `test_install.py` tries the first two."""


def run_page(page: str, folder: Path, *, is_slow: bool, timeout_s: float) -> None:
    wanted = [block for block in blocks(page) if block.word != "not run" and (is_slow or block.word != "slow")]
    run = Run(folder / "page")
    run.steps = [step for block in wanted for step in steps(block)]
    assert run.steps, f"{page} has nothing to run"
    run.check(timeout_s)


@pytest.mark.network
@pytest.mark.parametrize("page", QUICK)
def test_commands_do_what_the_page_says(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, is_slow=False, timeout_s=300)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("page", [*SLOW, "README.md"])
def test_slow_commands_do_what_the_page_says(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, is_slow=True, timeout_s=1200)


@pytest.mark.tf
@pytest.mark.network
def test_the_tutorial_leads_from_keras_to_three_devices(tmp_path: Path) -> None:
    assert find_spec("tensorflow"), 'this marker needs pip install "hyps[tf]"'
    run_page(KERAS, tmp_path, is_slow=True, timeout_s=1200)


def test_every_block_that_is_not_run_has_a_known_reason() -> None:
    found = [block for page in (*QUICK, *SLOW, KERAS, *READ_ONLY) for block in blocks(page) if block.word == "not run"]
    strange = [f"{block.place}: {block.why!r}" for block in found if block.why not in NOT_RUN]
    assert strange == []
    assert {reason: sum(block.why == reason for block in found) for reason in NOT_RUN} == NOT_RUN


def test_pages_for_other_machines_run_nothing_unsaid() -> None:
    for page in READ_ONLY:
        assert [block.place for block in blocks(page) if _is_runnable(block) and block.word != "not run"] == []


def test_every_page_of_start_tutorial_and_guides_is_tried() -> None:
    tried = {*QUICK, *SLOW, *READ_ONLY, KERAS}
    pages = [
        path for folder in ("start", "tutorial", "guides") for path in sorted((ROOT / "docs" / folder).glob("*.md"))
    ]
    untried = [path.relative_to(ROOT).as_posix() for path in pages]
    assert [page for page in untried if page not in tried] == []


@pytest.mark.skipif(sys.platform != "linux", reason="bash and loopback ports as on Linux")
def test_a_failing_command_and_a_wrong_output_are_noticed(tmp_path: Path) -> None:
    block = Block("page.md", 1, "console", "", ["$ echo one", "two"])
    run = Run(tmp_path / "wrong", list(steps(block)))
    with pytest.raises(AssertionError, match="but it said\n\none"):
        run.check(20)
    run = Run(tmp_path / "failing", list(steps(Block("page.md", 1, "sh", "", ["true", "false", "true"]))))
    with pytest.raises(AssertionError, match=r"page\.md:1: status 1"):
        run.check(20)


@pytest.mark.parametrize(("shown", "said", "numbers_vary", "is_right"), [
    (["a  1", "..."], ["a 1", "b", "c"], False, True),
    (["...", "c"], ["c"], False, True),
    (["a ... d"], ["a b c d"], False, True),
    (["a 1"], ["a 2"], False, False),
    (["a"], ["a", "b"], False, False),
    (["took 1 ms"], ["took 2.5 s"], True, True),
    (["took 1 ms"], ["takes 1 ms"], True, False),
    (["p1 9.5 kB 1x2"], ["p1 8 MB 1x2"], True, True),
])  # fmt: skip
def test_what_a_page_shows_stands_for_what_was_said(
    shown: list[str], said: list[str], numbers_vary: bool, is_right: bool
) -> None:
    assert shown_is_said(shown, said, numbers_vary=numbers_vary) == is_right


def _is_runnable(block: Block) -> bool:
    return bool(block.title) or block.language in ("sh", "console", "python")
