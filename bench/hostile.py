"""Hands every hostile file, folder and option of the tests to the real commands, and counts how they end.

python bench/hostile.py [WORD ...]: only the cases with one of the words in their names.
"""

import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import machine, write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before this folder, which has a `hostile` too

from hostile.case import Case, check, run_case
from hostile.table import CASES


def main() -> int:
    """Run the cases one after another; the status is 1 where one did not end as it must."""
    words = sys.argv[1:]
    names = [name for name in CASES if not words or any(word in name for word in words)]
    rows = []
    for name in names:
        rows.append(tried(name, CASES[name]))
        if rows[-1]["wrong"]:
            print(f"{name}: {rows[-1]['wrong']}")
    print(table(rows))
    if not words:
        print(f"wrote {write_results('hostile', {'machine': machine(), 'cases': rows})}")
    return int(any(row["wrong"] for row in rows))


def tried(name: str, case: Case) -> dict[str, Any]:
    """Run one case and return what it took, and what was wrong about how it ended."""
    row = {"name": name, "code": case.code, "status": None, "seconds": None, "cpu_s": None, "peak_bytes": None}
    with TemporaryDirectory(prefix="hyps-bench-") as folder:
        try:
            outcome = run_case(case, Path(folder))
            done = outcome.finished
            row |= {"status": done.status, "seconds": done.seconds, "cpu_s": done.cpu_s, "peak_bytes": done.peak_bytes}
            check(case, outcome)
        except (AssertionError, TimeoutError) as error:
            return {**row, "wrong": str(error) or "not as said"}
    return {**row, "wrong": ""}


def table(rows: list[dict[str, Any]]) -> str:
    """Return for each kind of case how many were tried and refused well, and the most that one took."""
    kinds = Counter(row["name"].split(": ")[0] for row in rows)
    lines = [f"{'kind':10} {'tried':>5} {'refused well':>12} {'most seconds':>12} {'CPU s':>6} {'most memory, MB':>15}"]
    for kind in [*kinds, "all"]:
        own = [row for row in rows if kind in ("all", row["name"].split(": ")[0])]
        ran = [row for row in own if row["seconds"] is not None]
        most = [max((row[key] for row in ran), default=0) for key in ("seconds", "cpu_s", "peak_bytes")]
        well = sum(not row["wrong"] for row in own)
        lines.append(f"{kind:10} {len(own):5} {well:12} {most[0]:12.2f} {most[1]:6.2f} {most[2] / 1e6:15.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
