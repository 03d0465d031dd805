"""The program on the device that measures the way to a worker: `python -m truth.link ADDRESS` prints a line of JSON."""

import sys

import msgspec

from hyps.probe import probe_link

if __name__ == "__main__":
    print(msgspec.json.encode(probe_link(sys.argv[1])).decode())
