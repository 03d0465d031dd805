"""The rival in a process of its own: unsplit onnxruntime, with its defaults or held down as far as its options go.

    python bench/whole.py '{"model": ..., "how": "default" or "best", ...}'

The argument is a `Job` of `inferring`. `best` takes the model that onnxruntime has saved with its weights as external
data (see `prepare`), maps them and does not prepack.
"""

from collections.abc import Callable

import onnxruntime as ort

from inferring import infer, read_job


def prepare(model: str, target: str, *, optimized: bool) -> None:
    """Write the model with external weights to `target`, with onnxruntime's layouts and fusions or as it was."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.optimized_model_filepath = target
    data = target.rpartition("/")[2].removesuffix(".onnx") + ".data"
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Load the model, run it, print the figures."""
    job, feeds = read_job()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if job.how == "best":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")

    def load() -> Callable[[], object]:
        session = ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)

    infer(job, load)


if __name__ == "__main__":
    main()
