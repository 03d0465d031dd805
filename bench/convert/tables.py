"""The table of a run, as Markdown."""

from typing import Any


def show(models: dict[str, Any]) -> str:
    """Return what was measured: sources by row, HyPS first, then tf2onnx's own command line where it was run."""
    heads = "source", "by", "nodes", "CPU s", "MB", "difference", "tf2onnx alone: nodes", "CPU s", "MB"
    rows = [_row(name, model) for name, model in models.items()]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _row(name: str, model: dict[str, Any]) -> list[str]:
    ours, rival = model["hyps"], model.get("tf2onnx")
    if not ours["converts"]:
        cells = [name, f"no: {ours['said']}", *[""] * 4]
    else:
        verdict = _difference(ours)
        cells = [name, ours["converter"], *map(str, (ours["nodes"], round(ours["cpu_s"], 1), _mb(ours))), verdict]
    if rival is None:
        return [*cells, "", "", ""]
    nodes = str(rival["nodes"]) if rival["converts"] else "no"
    return [*cells, nodes, str(round(rival["cpu_s"], 1)), str(_mb(rival))]


def _difference(ours: dict[str, Any]) -> str:
    if ours["difference"] is None:
        return str(ours["unverified"])
    steps = [found["steps"] for found in ours["agreement"] if found["steps"] is not None]
    if steps:
        share = min(found["equal_share"] for found in ours["agreement"])
        return f"{share:.1%} equal, {max(steps):.2g} steps"
    constant = " (hardly varies)" if any(found["varies"] is False for found in ours["agreement"]) else ""
    rounding = max((found.get("rounding") or 0.0 for found in ours["agreement"]), default=0.0)
    shaken = f" (rounding alone: {rounding:.0e})" if rounding else ""
    return f"{ours['difference']:.0e}{shaken or constant}"


def _mb(measured: dict[str, Any]) -> int:
    return round(float(measured["peak_bytes"]) / 1e6)
