"""onnxruntime as the compiler uses it: an oracle for types and answers, and the maker of fused graphs."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from hyps.adapters.guard import guarded
from hyps.adapters.sessions import ORT_ERRORS, is_out_of_memory, one_line
from hyps.errors import ExecutionError, ModelError

Level = Literal["none", "basic", "portable", "native", "default"]

_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "portable": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "native": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "default": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXTERNAL_FROM_BYTES = 1024
_MOST_FOLDED_NBYTES = 2**30
"""onnxruntime's own default of 1.31, which it may change: a constant larger than this is computed at each run."""
_LESS_MEMORY = "free memory, or give the shapes of a smaller request with --input"

ort.set_default_logger_severity(4)  # what it logs outside any session would go to stderr


def open_session(
    model: Path | bytes,
    level: Level,
    *,
    folder: Path | None = None,
    save_as: Path | None = None,
    disabled: Sequence[str] = (),
    prepack: bool = False,
    lossless: bool = False,
) -> ort.InferenceSession:
    """Return a session on the CPU whose weights stay in their files where they are external data.

    Args:
        model: a path, or the bytes of a model whose external data lies in `folder`.
        level: which graph optimizations; `default` is what users of onnxruntime get.
        folder: where external data lies, for a model given as bytes.
        save_as: writes the optimized model there, its weights beside it in a file named after it with `.data`.
        disabled: names of onnxruntime's optimizers to leave out.
        prepack: whether weights are copied into the layout of the kernels, as onnxruntime does by default: it moves the
            last bits of a product.
        lossless: whether products with weights that were quantized by blocks are computed in float32; by default
            onnxruntime fuses them into kernels that quantize the other factor too.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_MOST_FOLDED_NBYTES))
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if lossless:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if save_as is not None:
        options.optimized_model_filepath = str(save_as)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{save_as.stem}.data"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        with guarded(folder if isinstance(model, bytes) else model.parent):
            return ort.InferenceSession(
                source,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(disabled) or None,
                enable_fallback=0,
            )
    except ORT_ERRORS as error:
        if is_out_of_memory(error):
            raise ModelError("there is not enough memory to open the model", _LESS_MEMORY, "E_MEMORY") from error
        raise ModelError(
            f"onnxruntime refuses the model: {one_line(error)}",
            "the same model fails in onnxruntime without HyPS; export it again",
            code="E_UNSUPPORTED",
        ) from error


def run(
    session: ort.InferenceSession, names: Collection[str], feeds: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, Any]:
    """Return the named outputs of one run.

    Raises:
        ExecutionError: onnxruntime fails on these inputs.
    """
    wanted = list(names)
    if not wanted:
        return {}  # onnxruntime would take no names for all
    try:
        with guarded():
            values = session.run(wanted, dict(feeds))
    except ORT_ERRORS as error:
        if is_out_of_memory(error):
            raise ExecutionError("there is not enough memory to run the model", _LESS_MEMORY, "E_MEMORY") from error
        raise ExecutionError(f"onnxruntime cannot run the model on these inputs: {one_line(error)}") from error
    return dict(zip(wanted, values, strict=True))
