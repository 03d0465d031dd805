"""Where a request's time and memory went, partition by partition: what `hypsc run --explain` shows."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from hyps.adapters.resident import reset_peak, resident
from hyps.adapters.spill_file import SpillCounts
from hyps.errors import printable
from hyps.formats.plan import Partition, Plan
from hyps.formats.quantities import counted, format_nbytes, format_seconds
from hyps.local import LocalRunner

WIDTH = 80
_BAR = 10
_COMPUTE, _WAIT, _RELEASE = "█", "▒", "░"


@dataclass(frozen=True, slots=True)
class Share:
    """What one partition, or several equal ones together, took of the requests."""

    label: str
    mode: str
    """How it was run: `fast`, `packed`, `streamed`, `mapped` or `exact`."""
    load_s: float
    """To have its weights; of those read ahead, what the reading thread took meanwhile."""
    compute_s: float
    wait_s: float
    """What the requests stood still for of the loading."""
    release_s: float
    read_nbytes: int
    peak_nbytes: int | None
    """The most that the whole process had resident in its turn; None where the system does not tell."""
    planned_nbytes: int | None
    """What the plan says that it adds to the process's own base, at most."""
    count: int = 1

    @property
    def seconds(self) -> float:
        """What the requests took for it."""
        return self.wait_s + self.compute_s + self.release_s


@dataclass(frozen=True, slots=True)
class Explanation:
    """All partitions in running order, and the whole."""

    shares: tuple[Share, ...]
    groups: tuple[Share, ...]
    """The same, with the pieces of one layer together."""
    seconds: float
    requests: int
    base_nbytes: int
    """What the process is reckoned to take beside partitions and activations."""
    budget_nbytes: int | None
    spilled: SpillCounts = field(default_factory=SpillCounts)
    """Feature maps that went to a scratch file, and came back."""

    @property
    def peak_nbytes(self) -> int | None:
        """The most that the process had resident while requests ran."""
        return max((share.peak_nbytes for share in self.shares if share.peak_nbytes is not None), default=None)

    def total(self, name: str) -> float:
        """Return the sum of a field of all shares."""
        return float(sum(getattr(share, name) for share in self.shares))

    @property
    def other_s(self) -> float:
        """What was neither computing nor waiting nor releasing: passing tensors on, sending them away and back."""
        return max(0.0, self.seconds - sum(share.seconds for share in self.shares))

    def as_json(self) -> dict[str, Any]:
        """Return everything, for machines."""
        totals = {name: self.total(name) for name in ("load_s", "compute_s", "wait_s", "release_s")}
        return {
            "seconds": self.seconds,
            "requests": self.requests,
            **totals,
            "other_s": self.other_s,
            "spilled": {
                key: getattr(self.spilled, key) for key in ("written_nbytes", "write_s", "read_nbytes", "read_s")
            },
            "read_nbytes": int(self.total("read_nbytes")),
            "peak_nbytes": self.peak_nbytes,
            "base_nbytes": self.base_nbytes,
            "budget_nbytes": self.budget_nbytes,
            "partitions": [_share_json(share) for share in self.shares],
        }


@dataclass(slots=True)
class Watcher:
    """Told of every tensor as it is made, notes the peak of the resident set in each partition's turn."""

    partitions: Sequence[Partition]
    peaks: dict[str, int] = field(default_factory=dict)
    _maker: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._maker = {part.outputs[0]: part.id for part in self.partitions if part.outputs}
        reset_peak()

    def __call__(self, name: str, value: Any) -> None:
        """Take note when `name` is the first tensor of a partition, which is then over."""
        partition, now = self._maker.get(name), resident()
        if partition is not None and now is not None:
            self.peaks[partition] = max(now.peak_nbytes, self.peaks.get(partition, 0))
            if not reset_peak():
                self.peaks.clear()
                self._maker.clear()


def explained(runner: LocalRunner, requests: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Explanation]:
    """Run the requests one after another and return their answers and where time and memory went.

    Raises:
        HypsError: as `LocalRunner.run`.
    """
    before = {name: _sums(timing) for name, timing in runner.timings.items()}
    spilled_before = replace(runner.spilled)
    watcher = Watcher(runner.plan.partitions)
    start_s = time.perf_counter()
    answers = [runner.run(request, on_activation=watcher) for request in requests]
    seconds = time.perf_counter() - start_s
    shares = []
    for part in runner.plan.partitions:
        load_s, wait_s, release_s, compute_s, read = (
            now - then for now, then in zip(_sums(runner.timings[part.id]), before[part.id], strict=True)
        )
        peak = watcher.peaks.get(part.id)
        shares.append(
            Share(
                part.id,
                runner.modes[part.id].value,
                load_s,
                compute_s,
                wait_s,
                release_s,
                int(read),
                peak,
                part.peak_memory_bytes,
            )
        )
    base, budget = runner.base_nbytes, runner.memory_bytes
    groups, spilled = group(runner.plan, shares), runner.spilled.since(spilled_before)
    return answers, Explanation(tuple(shares), groups, seconds, len(requests), base, budget, spilled)


def _sums(timing: Any) -> tuple[float, ...]:
    kinds = (timing.load_s, timing.wait_s, timing.release_s, timing.run_s, timing.read_nbytes)
    return tuple(sum(kind) for kind in kinds)


def group(plan: Plan, shares: Sequence[Share]) -> tuple[Share, ...]:
    """Return the shares with consecutive pieces of one layer taken together, each under a name for people."""
    pairs = zip(plan.partitions, shares, strict=True)
    grouped = [
        [*members] for _, members in groupby(pairs, lambda pair: pair[0].shard.layer if pair[0].shard else pair[0].id)
    ]
    return tuple(_together(plan, members) for members in grouped)


def _together(plan: Plan, members: Sequence[tuple[Partition, Share]]) -> Share:
    parts, shares = [part for part, _ in members], [share for _, share in members]
    return Share(
        label=_label(plan, parts),
        mode="+".join(dict.fromkeys(share.mode for share in shares)),
        load_s=sum(share.load_s for share in shares),
        compute_s=sum(share.compute_s for share in shares),
        wait_s=sum(share.wait_s for share in shares),
        release_s=sum(share.release_s for share in shares),
        read_nbytes=sum(share.read_nbytes for share in shares),
        peak_nbytes=_most(share.peak_nbytes for share in shares),
        planned_nbytes=_most(share.planned_nbytes for share in shares),
        count=len(shares),
    )


def _most(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)


def _label(plan: Plan, parts: Sequence[Partition]) -> str:
    first = parts[0]
    if first.shard is None:
        names = list(first.layers) or [first.id]
        return printable(names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}")
    return f"{printable(first.shard.layer)} [{counted(len(parts), _kind(plan, first))}]"


def _kind(plan: Plan, part: Partition) -> str:
    """Return what the pieces of a layer are: tiles where they are cut in space."""
    assert part.shard is not None
    shape = next((plan.tensors[name].shape for name in reversed(part.outputs)), None) or ()
    is_spatial = len(shape) >= 4 and part.shard.axis >= 2 - len(shape) and part.shard.merge == "concat"
    return "tile" if is_spatial else "slice"


def show_explanation(told: Explanation) -> str:
    """Return the explanation as text of `WIDTH` columns."""
    longest = max((share.seconds for share in told.groups), default=0.0)
    rows = [(share, _bar(share, longest)) for share in told.groups]
    label = WIDTH - _BAR - 1 - len(_figures(None))
    lines = [f"{'partition':<{label}}{_HEADERS} {'share'}"]
    lines += [f"{_short(share.label, label):<{label}}{_figures(share)} {bar}".rstrip() for share, bar in rows]
    lines += [
        "",
        f"{_COMPUTE} compute  {_WAIT} wait for weights  {_RELEASE} release; times in ms, sizes in MB,",
        "peak of the whole process, plan: what the partition adds to it at most",
    ]
    return "\n".join([*lines, "", *_totals(told)])


_COLUMNS = (("load", 6), ("compute", 8), ("wait", 6), ("release", 8), ("read", 6), ("peak", 6), ("plan", 6))
_HEADERS = "".join(f"{name:>{width}}" for name, width in _COLUMNS)


def _figures(share: Share | None) -> str:
    if share is None:
        return " " * sum(width for _, width in _COLUMNS)
    times = (share.load_s, share.compute_s, share.wait_s, share.release_s)
    sizes = (share.read_nbytes, share.peak_nbytes, share.planned_nbytes)
    cells = [_number(1e3 * seconds) for seconds in times]
    cells += ["-" if nbytes is None else _number(nbytes / 1e6) for nbytes in sizes]
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _number(value: float) -> str:
    """Return a number of at most five characters, `-` for nothing."""
    if value <= 0:
        return "-"
    if value < 999.95:
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"
    scale, unit = next(pair for pair in ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G")) if value < 9999.5 * pair[0])
    return f"{value / scale:.0f}{unit}"


def _bar(share: Share, longest: float) -> str:
    """Return the share's time against that of the longest, in characters for what it went to."""
    if longest <= 0:
        return ""
    text, done, drawn = "", 0.0, 0
    for seconds, mark in ((share.compute_s, _COMPUTE), (share.wait_s, _WAIT), (share.release_s, _RELEASE)):
        done += seconds
        upto = round(_BAR * done / longest)
        text, drawn = text + mark * (upto - drawn), max(drawn, upto)
    return text


def _short(text: str, width: int) -> str:
    """Return the text in less than `width` characters, the middle of the name left out: its ends tell layers apart."""
    if len(text) < width:
        return text
    name, bracket, pieces = text.partition(" [")
    keep = width - 2 - len(bracket + pieces)
    return f"{name[: keep // 2]}…{name[-(keep - keep // 2) :]}{bracket}{pieces}"


def _totals(told: Explanation) -> list[str]:
    parts = [("compute", told.total("compute_s")), ("wait", told.total("wait_s"))]
    parts += [("release", told.total("release_s")), ("other", told.other_s)]
    whole = max(told.seconds, 1e-9)
    shown = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in parts)
    read, load_s = told.total("read_nbytes"), told.total("load_s")
    lines = [f"time:    {format_seconds(told.seconds)}: {shown}"]
    if read:
        hidden = format_seconds(max(0.0, load_s - told.total("wait_s")))
        lines.append(f"read:    {format_nbytes(read)} in {format_seconds(load_s)}, {hidden} of it while computing")
    if told.spilled.written_nbytes:
        written, read_back = format_nbytes(told.spilled.written_nbytes), format_nbytes(told.spilled.read_nbytes)
        write_s, read_s = format_seconds(told.spilled.write_s), format_seconds(told.spilled.read_s)
        lines.append(f"spilled: {written} written in {write_s}, {read_back} read back in {read_s}")
    if told.peak_nbytes is not None:
        budget = "" if told.budget_nbytes is None else f", of {format_nbytes(told.budget_nbytes)}"
        lines.append(
            f"memory:  {format_nbytes(told.peak_nbytes)} resident at most{budget},"
            f" {format_nbytes(told.base_nbytes)} reckoned for the process"
        )
    return lines


def _share_json(share: Share) -> dict[str, Any]:
    names = ("mode", "load_s", "compute_s", "wait_s", "release_s", "read_nbytes", "peak_nbytes", "planned_nbytes")
    return {"id": share.label, **{name: getattr(share, name) for name in names}}
