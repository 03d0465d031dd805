"""The program on the device that measures the way to a worker, and what a request costs beside it.

    python -m truth.link ADDRESS

ADDRESS is that of a worker with the plan of `plans.write_empty`; a line of JSON is printed. The link is what
`hyps.probe` tells. It asks one probe right after the other, which the worker's first thread answers; a request goes
through more hands, and comes after the device has computed for a while: its code and data have left the caches, and
the server sleeps. That is measured here with requests that compute nothing, each after as much work as empties caches.
"""

import statistics
import sys
import time

import msgspec
import numpy as np

import hyps
from hyps.probe import probe_link
from truth.job import Way

_REQUESTS = 40
_PAUSE_S = 0.01
_ELEMENTS = 4_000_000
"""Of four bytes: more than a core's own caches hold."""


def main() -> None:
    """Measure and print."""
    address = sys.argv[1]
    link = probe_link(address)
    other, tiny, seconds = np.ones(_ELEMENTS, np.float32), {"x": np.zeros(1, np.float32)}, []
    with hyps.InferenceSession(address) as session:
        for _ in range(_REQUESTS):
            time.sleep(_PAUSE_S)
            other.sum()
            start_s = time.perf_counter()
            session.run(None, tiny)
            seconds.append(time.perf_counter() - start_s)
    there_and_back_s = 2 * (link.latency_s + link.message_s)
    request_s = max(0.0, statistics.median(seconds) - there_and_back_s)
    print(msgspec.json.encode(Way(link, request_s)).decode())


if __name__ == "__main__":
    main()
