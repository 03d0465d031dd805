"""Slows one core evenly: takes its time away in slices of a millisecond, whoever runs there.

    python -m testbed.pacer CORE FRACTION

leaves FRACTION of the core CORE to others, until the process that started it is gone.

Why not a quota: a control group's quota is a budget per period, and whatever fits the budget runs at full speed. A
device that answers a request and then waits for the next has its budget full each time. MobileNetV2 with one thread on
a quarter of a core, median of 40 runs as a multiple of the whole core's (an even device would say 4.0 twice):

    how                        one after another     with 0.1 to 0.2 s between
    quota, period of 100 ms    1.1 (mean 4.3)        1.2
    quota, period of 20 ms     4.6                   1.5
    quota, period of 10 ms     4.7                   1.3
    quota, period of 5 ms      4.8                   3.3
    quota, period of 2 ms      1.0                   1.4
    this, period of 4 ms       4.7                   4.1
    this, period of 1 ms       4.6                   4.6
    this, period of 0.5 ms     4.8                   5.4

A period of 1 ms is the one that slows both alike; what it is above 4.0 are caches and switches, which slow everything
on the core by the same factor. Periods are uneven, from half to one and a half of it: exchanges that take about as long
as one would else fall into step with it, and be always lucky or never.
"""

import os
import random
import sys
import time

_PERIOD_S = 1e-3
_PERIODS = 256
_PRIORITY = 50


def main() -> None:
    """Take the time away: spin for a part of each period, sleep for the rest."""
    core, fraction = int(sys.argv[1]), float(sys.argv[2])
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("pacing", flush=True)
    clock, sleep = time.perf_counter, time.sleep
    uneven = random.Random(0)
    periods_s = [_PERIOD_S * uneven.uniform(0.5, 1.5) for _ in range(_PERIODS)]
    begin_s = clock()
    while os.getppid() == parent:
        for period_s in periods_s:
            end_s = begin_s + (1 - fraction) * period_s
            while clock() < end_s:
                pass
            begin_s = max(begin_s + period_s, clock() - period_s)  # after a long pause do not catch up
            sleep(max(0.0, begin_s - clock()))


if __name__ == "__main__":
    main()
