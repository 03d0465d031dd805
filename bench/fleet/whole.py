"""The rival: onnxruntime with its default options and one thread on the whole model, in a process of its own.

    python -m fleet.whole MODEL INPUTS REQUESTS

prints the seconds of each run as JSON, a first one that does not count left out.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort


def main() -> None:
    """Run, and print what it took."""
    path, inputs, requests = sys.argv[1], dict(np.load(sys.argv[2])), int(sys.argv[3])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    samples = []
    for _ in range(1 + requests):
        start_s = time.perf_counter()
        session.run(None, inputs)
        samples.append(time.perf_counter() - start_s)
    print(json.dumps(samples[1:]))


if __name__ == "__main__":
    main()
