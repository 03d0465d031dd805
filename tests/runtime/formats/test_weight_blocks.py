"""What is read of which file to have a form's weights."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from form_fixtures import write_formed
from hyps.formats.plan import FileRef, Form, Partition, StreamedWeight
from hyps.formats.weight_blocks import Span, blocks_of, rows_nbytes
from plan_fixtures import mlp


def partition_with(*places: tuple[str, int, int], **lengths: int) -> Partition:
    """Return a partition with weights of bytes at these paths, offsets and lengths, in files of these lengths."""
    weights = tuple(StreamedWeight(path=p, offset=o, nbytes=n, dtype="uint8", shape=(n,)) for p, o, n in places)
    return Partition(
        id="p",
        kind="vertical",
        file="p.onnx",
        sha256="0",
        weights=tuple(FileRef(path=path, sha256=f"sha-{path}", nbytes=nbytes) for path, nbytes in lengths.items()),
        inputs=(),
        outputs=(),
        layers=(),
        parameters=0,
        weight_bytes=0,
        form=Form(file="f", sha256="1", inputs=(), outputs=(), weights=weights),
    )


@pytest.mark.parametrize(
    ("places", "spans"),
    [
        ([(0, 10)], [Span(0, 4096, 0)]),
        ([(8192, 4096)], [Span(8192, 4096, 0)]),
        ([(4100, 10)], [Span(4096, 4096, 0)]),
        ([(0, 64), (64, 64)], [Span(0, 4096, 0)]),
        ([(8192, 10), (0, 10)], [Span(0, 12288, 0)]),
        ([(0, 10), (1_000_000, 10)], [Span(0, 4096, 0), Span(999424, 4096, 4096)]),
        ([(2_000_000 - 10, 10)], [Span(1998848, 1152, 0)]),
    ],
    ids=["start", "page", "within", "together", "near", "far", "end"],
)
def test_spans_are_whole_pages_and_join_what_is_near(places: list[tuple[int, int]], spans: list[Span]) -> None:
    part = partition_with(*(("a", offset, nbytes) for offset, nbytes in places), a=2_000_000)
    block = blocks_of(part)["a"]
    assert list(block.spans) == spans
    assert block.nbytes == spans[-1].start + spans[-1].nbytes


def test_every_weight_lies_in_its_block_as_aligned_as_in_the_file() -> None:
    places = [("a", 4096 * i * 40 + 64 * i, 100) for i in range(9)]
    block = blocks_of(partition_with(*places, a=2_000_000))["a"]
    for _, offset, nbytes in places:
        start = block.place_of(offset)
        assert start % 4096 == offset % 4096
        assert any(s.start <= start and start + nbytes <= s.start + s.nbytes for s in block.spans)


def test_each_file_has_a_block_of_its_own() -> None:
    blocks = blocks_of(partition_with(("a", 0, 10), ("b", 0, 10), a=10, b=10))
    assert {path: block.file.path for path, block in blocks.items()} == {"a": "a", "b": "b"}
    assert blocks["a"].key != blocks["b"].key


def test_blocks_of_the_same_bytes_have_the_same_key() -> None:
    one, other = (blocks_of(partition_with(("a", 0, 10), a=9000))["a"] for _ in range(2))
    far = blocks_of(partition_with(("a", 5000, 10), a=9000))["a"]
    assert one.key == other.key != far.key


def test_without_a_form_nothing_is_read(tmp_path: Path) -> None:
    plan = write_formed(mlp(4, 4), tmp_path / "plan")
    assert len(blocks_of(plan.partitions[0])) == 1
    assert blocks_of(replace(plan.partitions[0], form=None)) == {}


def test_tables_of_which_rows_are_read_lie_in_no_block() -> None:
    part = partition_with(("a", 0, 5000), ("a", 8192, 5000), a=2_000_000)
    assert part.form is not None
    whole, table = part.form.weights
    changed = replace(part.form, weights=(whole, replace(table, looked_up_by=("i",))))
    assert blocks_of(replace(part, form=changed))["a"].spans == (Span(0, 8192, 0),)
    alone = replace(part.form, weights=(replace(table, looked_up_by=("i",)),))
    assert blocks_of(replace(part, form=alone)) == {}


@pytest.mark.parametrize("width", [1, 4, 100, 1024, 3072, 4096, 4100, 10_000, 12_288])
def test_rows_never_touch_more_pages_than_counted_and_some_touch_as_many(width: int) -> None:
    rows = 40_960
    touched = [-(-(row * width + width) // 4096) - row * width // 4096 for row in range(5000)]
    assert max(touched) * 4096 == rows_nbytes(rows * width, rows, 1)
    assert rows_nbytes(rows * width, rows, 10**9) == rows * width
