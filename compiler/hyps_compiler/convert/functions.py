"""TensorFlow's sources on the child's side: Keras models, SavedModel folders and frozen graphs, by tf2onnx.

Imports TensorFlow: for the child process only.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyps_compiler.convert import freeze, graph, naming, sources, weights
from hyps_compiler.convert.request import MODEL_NAME, Made, Request
from hyps_compiler.convert.samples import leave_references
from hyps_compiler.convert.shapes import fixed_shapes

logger = logging.getLogger(__name__)


def run(request: Request) -> Made:
    """Convert as asked and leave model and references in the request's folder.

    Raises:
        ModelError: the source cannot be loaded or expressed in ONNX.
        UsageError: an input to fix does not exist or has another rank.
    """
    source = Path(request.source)
    logger.info("loading %s", source.name)
    traced = sources.load_source(source, request.kind, Path(request.folder), request.outputs, trust=request.trust)
    unverified = ""
    shapes = fixed_shapes(traced.shapes(), request.inputs)
    if request.samples:
        logger.info("asking the source for references")
        unverified = leave_references(request, traced.described(), traced.answer)
    logger.info("freezing %d inputs, %d outputs", len(traced.inputs), len(traced.outputs))
    frozen = freeze.freeze(traced.function, request.constant_nbytes)
    nodes = {name: tensor.split(":")[0] for tensor, name in traced.inputs.items()}
    freeze.fix_shapes(frozen.graph_def, {nodes[name]: shape for name, shape in shapes.items()})
    weight_names = _name_weights(frozen.lifted, [*traced.inputs.values(), *traced.outputs.values()])
    logger.info("converting, with %d weights set aside", len(weight_names))
    model = graph.to_onnx(
        frozen.graph_def,
        inputs=traced.inputs | weight_names,
        outputs=traced.outputs,
        opset=request.opset,
        source_name=source.name,
    )
    logger.info("writing %d nodes", len(model.graph.node))
    naming.simplify_names(model)
    naming.name_dims(model.graph, shares_batch=request.kind.startswith("keras"))
    placed = {
        weight_names[f"{name}:0"]: weights.Weight(variable.numpy, freeze.variable_nbytes(variable))
        for name, variable in frozen.lifted.items()
    }
    weights.write_model(model, placed, Path(request.folder, MODEL_NAME))
    return Made(converter=graph.converter_version(), framework=traced.framework, unverified=unverified)


def _name_weights(lifted: Mapping[str, Any], taken: Iterable[str]) -> dict[str, str]:
    """Return a readable name per lifted variable, by its placeholder's tensor; all different, none of them `taken`."""
    used = set(taken)
    names: dict[str, str] = {}
    for placeholder, variable in lifted.items():
        name = base = variable.name.split(":")[0]
        number = 0
        while name in used:
            number += 1
            name = f"{base}_{number}"
        used.add(name)
        names[f"{placeholder}:0"] = name
    return names
