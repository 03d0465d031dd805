"""The results in words: tables of Markdown, a limit to a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memory.contenders import BEST, DEFAULT, NATIVE, PLAIN, PORTABLE
from memory.measuring import best_of, median_s
from memory.subjects import MB

MODES = ("cold", "warm", "cached")
_OURS, _THEIRS = (PORTABLE, NATIVE), (BEST, PLAIN)

Model = Mapping[str, Any]


def show(models: Mapping[str, Model]) -> str:
    """Return every table."""
    blocks = [_smallest_table(models), _slow_table(models), _peaks_table(models)]
    blocks += [_limits_table(name, model) for name, model in models.items()]
    return "\n\n".join(blocks)


def _limits_table(name: str, model: Model) -> str:
    size = model["size"]
    head = (
        f"{name}: {_mb(size['weight_bytes'])} MB of weights, {_mb(size['map_bytes'])} MB of feature maps; "
        f"load average {_loads(model)}"
    )
    columns = ["limit", "MB", *(f"{mode} {who}" for mode in MODES[:2] for who in "abc")]
    columns += ["c/b cold", "warm", "c/a warm", "cached b, c"]
    rows = [_limit_row(word, limit) for word, limit in model["limits"].items()]
    return f"{head}\n\n{_markdown(columns, rows)}"


def _limit_row(word: str, limit: Mapping[str, Any]) -> list[str]:
    figures = {mode: _abc(limit, mode) for mode in MODES}
    cells = [
        _seconds(figure, limit, who) for mode in MODES[:2] for who, figure in zip("abc", figures[mode], strict=True)
    ]
    (_, cold_b, cold_c), (warm_a, warm_b, warm_c) = figures["cold"], figures["warm"]
    ratios = [_ratio(cold_c, cold_b), _ratio(warm_c, warm_b), _ratio(warm_c, warm_a)]
    cached = ", ".join(_plain(figure) for figure in figures["cached"][1:])
    return [word, "" if word == "none" else _mb(limit["limit_bytes"]), *cells, *ratios, cached]


def _abc(limit: Mapping[str, Any], mode: str) -> tuple[float | None, float | None, float | None]:
    """Return the median seconds of onnxruntime's defaults, of its best and of HyPS: the better of two each."""
    best, ours = best_of(_THEIRS, limit, mode), best_of(_OURS, limit, mode)
    return (
        median_s(limit, DEFAULT, mode),
        None if best is None else median_s(limit, best, mode),
        None if ours is None else median_s(limit, ours, mode),
    )


def _seconds(figure: float | None, limit: Mapping[str, Any], who: str) -> str:
    """Return the seconds, or why there are none."""
    if figure is not None:
        return _plain(figure)
    labels = {"a": (DEFAULT,), "b": _THEIRS, "c": _OURS}[who]
    failures = [run["failure"] for label in labels for run in limit["runs"].get(label, []) if run["failure"]]
    if failures:
        return "killed" if "killed" in failures or any(f.startswith("status") for f in failures) else failures[0]
    return "refused" if who == "c" and any(plan["refusal"] for plan in limit["plans"].values()) else "-"


def _smallest_table(models: Mapping[str, Model]) -> str:
    columns = ["smallest limit, MB", "a", "b", "c", "c/b", "s there: b", "c", "s with 15 MB more: b", "c"]
    return _markdown(columns, [_smallest_row(name, model["smallest"]) for name, model in models.items()])


def _smallest_row(name: str, smallest: Mapping[str, Any]) -> list[str]:
    found = [_least(smallest, labels) for labels in ((DEFAULT,), _THEIRS, _OURS)]
    limits = [None if one is None else one["limit_bytes"] for one in found]
    there = [_one_run(one, "run") for one in found[1:]]
    spared = [_one_run(one, "spared") for one in found[1:]]
    return [name, *(_mb(limit) for limit in limits), _ratio(limits[2], limits[1]), *there, *spared]


def _least(smallest: Mapping[str, Any], labels: Sequence[str]) -> Mapping[str, Any] | None:
    known = [smallest[label] for label in labels if smallest.get(label, {}).get("limit_bytes")]
    return min(known, key=lambda one: int(one["limit_bytes"]), default=None)


def _one_run(found: Mapping[str, Any] | None, key: str) -> str:
    if found is None:
        return "-"
    samples = found[key]["samples_s"].get("cold")
    return _plain(min(samples)) if samples else str(found[key]["failure"])


def _slow_table(models: Mapping[str, Model]) -> str:
    rows = []
    for name, model in models.items():
        slow = model.get("slow") or {}
        if "skipped" in slow:
            rows.append([name, "", slow["skipped"], "", "", ""])
            continue
        for limit in slow.values():
            a, b, c = _abc(limit, "slow")
            cells = [
                _seconds(figure, {**limit, "plans": {}}, who) for who, figure in zip("abc", (a, b, c), strict=True)
            ]
            rows.append([name, _mb(limit["limit_bytes"]), *cells, _ratio(c, b)])
    return _markdown(["40 MB/s disk", "limit MB", "a", "b", "c", "c/b"], rows)


def _peaks_table(models: Mapping[str, Model]) -> str:
    rows = []
    for name, model in models.items():
        ratios = sorted(_peak_ratios(model))
        if ratios:
            middle = ratios[len(ratios) // 2]
            figures = (ratios[0], middle, ratios[-1], max(_budget_ratios(model), default=0.0))
            rows.append([name, str(len(ratios)), *(f"{ratio:.2f}" for ratio in figures)])
    columns = ["predicted / measured peak", "partitions", "least", "median", "most", "process / budget, most"]
    return _markdown(columns, rows)


def _peak_ratios(model: Model) -> Iterator[float]:
    plans = [plan for limit in model["limits"].values() for plan in limit["plans"].values()]
    for plan in plans:
        for partition, measured in plan.get("weighed", {}).get("measured", {}).items():
            predicted = plan["predicted"][partition]
            if measured and predicted is not None:
                yield predicted / measured


def _budget_ratios(model: Model) -> Iterator[float]:
    """Yield what processes had resident at most, as a part of the budget that they were given."""
    for limit in model["limits"].values():
        for layout, plan in limit["plans"].items():
            for run in limit["runs"].get(layout, []) if plan.get("budget_bytes") else ():
                yield from (memory["peak_rss_bytes"] / plan["budget_bytes"] for memory in run["memory"].values())


def _loads(model: Model) -> str:
    runs = [run for limit in model["limits"].values() for done in limit["runs"].values() for run in done]
    loads = [run["load_average"] for run in runs] or [0.0]
    return f"{min(loads):.1f} to {max(loads):.1f}"


def _mb(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / MB:.0f}" if nbytes >= 10 * MB else f"{nbytes / MB:.2g}"


def _plain(seconds: float | None) -> str:
    return (
        "-"
        if seconds is None
        else f"{seconds:.1f}"
        if seconds >= 10
        else f"{seconds:.2f}"
        if seconds >= 0.1
        else f"{seconds:.3f}"
    )


def _ratio(one: float | None, other: float | None) -> str:
    return "" if not one or not other else f"{one / other:.2f}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
