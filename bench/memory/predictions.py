"""What a plan's partitions are measured to take, beside what the plan says."""

import tempfile
from pathlib import Path
from typing import Any

from hyps.errors import HypsError
from hyps_compiler.arrays import read_npz
from hyps_compiler.weighing import weigh_plan


def weigh(folder: Path, feeds: Path) -> dict[str, Any]:
    """Return, per partition, by how many bytes it raises the resident set of a process that runs nothing else.

    The first run counts code that is read for it; the largest of the others counts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            weighing = weigh_plan(folder, Path(scratch), read_npz(feeds), threads=1)
        except HypsError as error:
            return {"failure": error.message}
    if weighing is None:
        return {"failure": "the system does not tell peaks"}
    measured = {weight.id: weight.most_nbytes for weight in weighing.partitions}
    return {"base_bytes": weighing.base_nbytes, "end_bytes": weighing.end_nbytes, "measured": measured}
