"""`python bench/conformance [SUITE or FOLDER ...]`: the table of suites, refusals and wrong answers."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # the onnx package's cases are of an opset newer than onnxruntime

from common import RESULTS, machine, write_results
from conformance.pool import run_all
from conformance.suites import SUITES, iterate
from conformance.trial import STATUSES, Effort
from hyps_compiler.source import files_digest

_REASONS = 40
"""Reasons shown why regions are not divided, the most frequent first; the file has all."""


@click.command()
@click.argument("suites", nargs=-1)
@click.option("--jobs", default=2, show_default=True, help="Processes at once.")
@click.option("--level", "levels", multiple=True, type=click.Choice(["none", "portable", "native"]))
@click.option("--two-part", default=40, show_default=True, help="Most two-part cuts per level.")
@click.option("--random", "random_cuts", default=3, show_default=True, help="Random cuts in many parts per level.")
@click.option("--slices", default=4, show_default=True, help="Most layers cut into slices per level.")
@click.option("--pieces", default=12, show_default=True, help="Most regions divided into pieces per level.")
@click.option("--product/--no-product", default=True, help="Also compile and run as `hypsc` and a worker do.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds for one model.")
@click.option("--only", help="Only models with this in their name.")
@click.option(
    "--fresh", is_flag=True, help="Forget earlier results; without it, those of the same code and effort are kept."
)
@click.option("--log", type=click.Path(path_type=Path), default=RESULTS / "conformance.jsonl", help="Where results go.")
def main(
    suites: tuple[str, ...],
    jobs: int,
    levels: tuple[Any, ...],
    two_part: int,
    random_cuts: int,
    slices: int,
    pieces: int,
    product: bool,
    timeout: float,
    only: str | None,
    fresh: bool,
    log: Path,
) -> None:
    """Cut every model of the suites (default: all) at every legal place, run in parts, compare with onnxruntime."""
    effort = Effort(
        levels=levels or ("none", "portable", "native"),
        two_part=two_part,
        random_cuts=random_cuts,
        slices=slices,
        pieces=pieces,
        product=product,
    )
    words = suites or tuple(SUITES)
    tasks = [task for task in iterate(words) if only is None or only in task[1]]
    if fresh:
        log.unlink(missing_ok=True)
    made_by = _digest(effort)
    done = {key: record for key, record in _read(log, made_by).items() if key in set(tasks)}
    left = [task for task in tasks if task not in done]
    log.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    with log.open("a") as file:
        for count, ((word, name), record) in enumerate(run_all(left, effort, jobs=jobs, timeout_s=timeout), 1):
            done[word, name] = record
            file.write(json.dumps({"suite": word, "model": name, "made_by": made_by, **record}) + "\n")
            file.flush()
            _tell(f"{count}/{len(left)} {time.monotonic() - start:.0f} s {word}/{name}: {record['status']}")
    print(table(words, done))
    if not only and not suites and effort == Effort():
        write_results("conformance", {"machine": machine(), **summary(words, done)})
    sys.exit(any(record["status"] == "wrong" for record in done.values()))


def _digest(effort: Effort) -> str:
    """Return what a record depends on beside its model: how much was tried, by which versions and what code."""
    packages = [f"{name} {version(name)}" for name in ("onnx", "onnx-ir", "onnxruntime", "numpy")]
    root = Path(__file__).parents[2]
    ours = sorted(
        path
        for folder in ("bench/conformance", "compiler", "passes", "runtime")
        for path in (root / folder).rglob("*.py")
    )
    return files_digest(ours)[:16] + sha256(repr((effort, packages)).encode()).hexdigest()[:16]


def _read(log: Path, made_by: str) -> dict[tuple[str, str], dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    records = [json.loads(line) for line in lines]
    return {(record["suite"], record["model"]): record for record in records if record["made_by"] == made_by}


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[:78]}")


def summary(words: Iterable[str], done: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of each suite, every refusal and wrong answer with its reason, and the slowest models."""
    rows: dict[str, dict[str, float]] = {}
    for word in words:
        records = [record for (suite, _), record in done.items() if suite == word]
        rows[word] = {
            "models": len(records),
            "cuts": sum(sum(record["counts"].values()) for record in records),
            **{status: sum(record["status"] == status for record in records) for status in STATUSES},
            "seconds": round(sum(record["seconds"] for record in records), 1),
        }
    bad: dict[str, list[dict[str, Any]]] = {
        status: [
            {"suite": suite, "model": name, **finding}
            for (suite, name), record in sorted(done.items())
            for finding in record["findings"][:20]
            if finding["status"] == status
        ]
        for status in ("refused", "wrong")
    }
    undivided: Counter[str] = Counter()
    for record in done.values():
        undivided.update(record["undivided"])
    slowest = sorted(done.items(), key=lambda item: -item[1]["seconds"])[:5]
    return {
        "suites": rows,
        **bad,
        "undivided": dict(undivided.most_common()),
        "slowest": [[*key, record["seconds"]] for key, record in slowest],
    }


def table(words: Iterable[str], done: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the table of suites, then reasons with how many models have them, then the slowest."""
    told = summary(words, done)
    lines = [
        f"{'suite':18}{'models':>7}{'cuts':>8}{'identical':>10}{'tolerance':>10}{'refused':>8}{'wrong':>6}{'s':>8}"
    ]
    for word, row in told["suites"].items():
        shown = word if len(word) < 18 else "…" + word[-16:]
        counts = f"{row['identical']:10}{row['tolerance']:10}{row['refused']:8}{row['wrong']:6}{row['seconds']:8.0f}"
        lines.append(f"{shown:18}{row['models']:7}{row['cuts']:8}{counts}")
    for status in ("refused", "wrong"):
        reasons: dict[str, set[str]] = {}
        for finding in told[status]:
            reasons.setdefault(finding["reason"][:110], set()).add(f"{finding['suite']}/{finding['model']}")
        if reasons:
            lines += ["", f"{status}:"]
        for reason, models in sorted(reasons.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(models):4}  {reason}\n        {', '.join(sorted(models)[:2])}")
    if told["undivided"]:
        lines += ["", "not divided:"]
        lines += [f"  {count:4}  {reason[:110]}" for reason, count in list(told["undivided"].items())[:_REASONS]]
    lines += [
        "",
        "slowest: " + ", ".join(f"{suite}/{name} {seconds:.0f} s" for suite, name, seconds in told["slowest"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
