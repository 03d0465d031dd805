"""Waits until a manager can take requests.

    python -m fleet.readiness ADDRESS SECONDS

ends with status 0 when a course is ready, and 1 when none is after so many seconds.
"""

import sys
import time

from hyps.errors import PeerError
from hyps.observer import observe

_PAUSE_S = 0.1


def main() -> int:
    """Wait."""
    deadline_s = time.monotonic() + float(sys.argv[2])
    last = "nobody answered"
    with observe(sys.argv[1]) as observer:
        while time.monotonic() < deadline_s:
            try:
                report = observer.ask(2.0)
            except PeerError as error:
                last = error.message
                continue
            if any(course.state == "ready" for course in report.courses):
                return 0
            last = f"{[(node.device, node.state, node.refused) for node in report.nodes]} {report.notes}"
            time.sleep(_PAUSE_S)
    print(last, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
