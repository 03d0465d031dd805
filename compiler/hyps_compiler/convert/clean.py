"""A converted model made clean: what can be computed once is, what has no effect is gone, sizes are told.

Every step leaves the outputs as they are, bit for bit: nothing that would change the order of an accumulation is done.
"""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)

from hyps_compiler.convert.clean_constants import fold_constants
from hyps_compiler.convert.clean_layout import merge_transposes
from hyps_compiler.convert.clean_lookups import drop_index_wrapping
from hyps_compiler.convert.clean_recurrent import drop_zero_states
from hyps_compiler.convert.clean_shapes import fix_reshapes
from hyps_compiler.irfile import load_model, save_model

_MADE_UP = "unk__"
_ROUNDS = 8
"""One step makes room for another; after so many rounds nothing is left to do in practice."""


def clean(path: Path) -> None:
    """Rewrite the model in a file; its weights in other files stay where they are."""
    model = load_model(path)
    _name_open_sizes(model.graph)
    LiftConstantsToInitializersPass()(model)
    for _ in range(_ROUNDS):
        _infer_shapes(model)
        if not clean_once(model):
            break
    _infer_shapes(model)
    save_model(model, path)


def _name_open_sizes(graph: ir.Graph) -> None:
    """Call an open size of inputs `batch` that is the first one wherever it is; take other made-up names away."""
    shapes = [value.shape for value in graph.inputs if value.shape is not None]
    first = {name for shape in shapes if len(shape) and (name := _made_up(shape[0]))}
    other = {name for shape in shapes for size in shape[1:] if (name := _made_up(size))}
    batch = first - other if len(first) == 1 else set()  # several need not be equal
    for value in graph.inputs:
        if value.shape is not None:
            sizes = [(size, _made_up(size)) for size in value.shape]
            value.shape = ir.Shape(("batch" if name in batch else None) if name else size for size, name in sizes)


def _made_up(size: int | ir.SymbolicDim) -> str:
    name = _name(size) or ""
    return name if name.startswith(_MADE_UP) else ""


def _infer_shapes(model: ir.Model) -> None:
    """Infer shapes; sizes stay open that the inference only has names of its own for, so that it may learn them yet."""
    ShapeInferencePass()(model)
    for value in (value for node in model.graph for value in node.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(None if _made_up(size) else size for size in value.shape)


def _name(size: int | ir.SymbolicDim) -> str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else None


def clean_once(model: ir.Model) -> bool:
    """Take every step once; return whether any changed the model, whose shapes have been inferred."""
    graph = model.graph
    changes = [
        fold_constants(model),
        fix_reshapes(graph),
        merge_transposes(graph),
        drop_zero_states(graph),
        drop_index_wrapping(graph),
        IdentityEliminationPass()(model).modified,
        RemoveUnusedNodesPass()(model).modified,
    ]
    return any(changes)
