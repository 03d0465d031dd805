"""Reading a part of a file in full, however little of it each call to the system brings."""

import os

_PIECE_NBYTES = 2**20
"""Of one call: larger ones were slower on a cold cache, as the system reads ahead meanwhile."""


def fill(descriptor: int, memory: memoryview, offset: int) -> int:
    """Read from `offset` of the file on until `memory` is full; return the bytes read, fewer where the file ends.

    Raises:
        OSError: it cannot be read.
    """
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done : done + _PIECE_NBYTES]], offset + done)
        if not count:
            break
        done += count
    return done
