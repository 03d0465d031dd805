"""Samples what processes hold, once a second, from /proc."""

import os
from dataclasses import dataclass, field
from pathlib import Path

_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
QUANTITIES = ("rss_nbytes", "descriptors", "threads")


@dataclass(slots=True)
class Series:
    """What was sampled of one process."""

    name: str
    pid: int
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {what: [] for what in QUANTITIES})
    """Seconds since the start, and value."""

    def take(self, at_s: float) -> bool:
        """Add a sample of each; return whether the process is still there."""
        folder = Path(f"/proc/{self.pid}")
        try:
            resident = int((folder / "statm").read_text().split()[1]) * _PAGE_NBYTES
            descriptors = len(list((folder / "fd").iterdir()))
            threads = len(list((folder / "task").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            return False
        for what, value in zip(QUANTITIES, (resident, descriptors, threads), strict=True):
            self.samples[what].append((at_s, float(value)))
        return True
