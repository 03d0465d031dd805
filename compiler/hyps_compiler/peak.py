"""Runs one request of a plan under its budget in this process alone and prints the peak resident bytes."""

import sys
from pathlib import Path

import numpy as np

from hyps.adapters.machine import peak_rss_nbytes
from hyps.local import LocalRunner


def main() -> None:
    """Run the plan `argv[1]` on the arrays of `argv[2]`, named in order by the rest of the arguments."""
    folder, request, *names = sys.argv[1:]
    with np.load(request, allow_pickle=False) as stored:
        feeds = {name: stored[f"input{index}"] for index, name in enumerate(names)}
    with LocalRunner(Path(folder)) as runner:
        runner.run(feeds)
    sys.stdout.write(f"{peak_rss_nbytes() or 0}\n")


if __name__ == "__main__":
    main()
