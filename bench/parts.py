"""A plan in a process of its own, as `whole.py` is the unsplit model: `python bench/parts.py '{"model": PLAN, ...}'`.

The argument is a `Job` of `inferring`; `how` is the budget in bytes, or `none`.
"""

from collections.abc import Callable

from hyps.local import LocalRunner
from inferring import infer, read_job


def main() -> None:
    """Open the plan, run it, print the figures."""
    job, feeds = read_job()
    budget = None if job.how == "none" else int(job.how)

    def load() -> Callable[[], object]:
        present = sum(value.nbytes for value in feeds.values())
        runner = LocalRunner(
            job.model, memory_bytes=budget, threads=1, check=False, own_process=True, present_nbytes=present
        )
        return lambda: runner.run(feeds)

    infer(job, load)


if __name__ == "__main__":
    main()
