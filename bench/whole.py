"""The rival in a process of its own: unsplit onnxruntime, with its defaults or held down as far as its options go.

    python bench/whole.py MODEL.onnx default|best REPEATS

Prints a JSON line: seconds to load, seconds of each inference, peak resident bytes. `best` takes the model that
onnxruntime has optimized and saved with its weights as external data (see `prepare`), maps them and does not prepack.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def prepare(model: Path, folder: Path) -> Path:
    """Write the optimized model with external weights into `folder` and return its path."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return folder / "optimized.onnx"


def main() -> None:
    """Load the model, run it, print the figures."""
    model, how, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if how == "best":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    start = time.perf_counter()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: image})
        samples.append(time.perf_counter() - begin)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"load_s": loaded - start, "samples_s": samples, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
