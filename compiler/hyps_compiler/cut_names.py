"""Names given with `--cut`: tensors as they are, layers as the tensors that they hand on."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyps.errors import ModelError, printable
from hyps_compiler.measure import Feeds, measure
from hyps_compiler.partition import CUTS
from hyps_compiler.source import Source
from hyps_compiler.stage import stage_model
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph


def cut_tensors(
    source: Source,
    names: Sequence[str],
    folder: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    feeds: Feeds | None,
    max_tensor_nbytes: int,
) -> tuple[str, ...]:
    """Return the tensors to cut at; a layer's name, as `hypsc inspect` shows it, means behind that layer.

    Args:
        source: the checked model file.
        names: of tensors or layers.
        folder: an empty one to work in, which is needed only where a name is no tensor's.
        shapes: of inputs with open dimensions.
        feeds: a request on which it runs; None makes one.
        max_tensor_nbytes: most bytes that one tensor may take that the model computes.

    Raises:
        ModelError: a name is neither, and the hint is the nearest of a tensor, a layer or a word of `--cut`; or the
            model cannot be run to find its layers.
    """
    if all(name in source.made for name in names):
        return tuple(names)
    staged = stage_model(source, folder, "none")
    measured = measure(staged.model, staged.path, shapes=shapes, feeds=feeds, max_tensor_nbytes=max_tensor_nbytes)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    inner = {str(value.name) for node in staged.model.graph for value in node.outputs}  # functions have been inlined
    behind = {layer.name: _handed_on(graph, layer.index) for layer in graph.layers}
    found: list[str] = []
    for name in names:
        if name in source.made or name in inner:
            found.append(name)
        elif name in behind:
            found += behind[name]
        else:
            raise _unknown(name, [*CUTS, *behind, *source.made])
    return tuple(dict.fromkeys(found))


def _handed_on(graph: CutGraph, layer: int) -> list[str]:
    return [value.name for value in graph.made_by.get(layer, ()) if value.consumers]


def _unknown(name: str, known: Sequence[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, 1)
    listed = "`hypsc inspect` lists the layers behind which it can be cut"
    return ModelError(
        f"`--cut` names `{printable(name)}`, which is no layer of the model and no tensor inside it",
        f"did you mean `{printable(near[0])}`?" if near else listed,
        code="E_UNKNOWN_TENSOR",
    )
