"""Faults in bringing a model into the form in which it is cut: reading, normalising, optimizing, measuring."""

from mutants.fault import Fault, test_files

_NORMALIZE = "passes/hyps_passes/rewrites/normalize.py"
_STAGE = "compiler/hyps_compiler/stage.py"
_IRFILE = "compiler/hyps_compiler/irfile.py"
_MEASURE = "compiler/hyps_compiler/measure.py"
_TEST_NORMALIZE = test_files("passes/rewrites/test_normalize compiler/test_stage property/test_random_models")
_TEST_STAGE = test_files("compiler/test_stage compiler/test_driver property/test_random_models")
_TEST_MEASURE = test_files("compiler/test_measure compiler/test_driver property/test_random_models")
_TEST_IRFILE = test_files("compiler/test_stage integration/test_real_features property/test_random_models")

FAULTS = (
    Fault(
        "a-needed-node-is-removed",
        _NORMALIZE,
        "        if any(value.uses() or value.is_graph_output() for value in node.outputs):\n",
        "        if any(value.uses() or value.is_graph_output() for value in node.outputs[:1]):\n",
        "a node of which only the second output is needed is taken for dead",
        _TEST_NORMALIZE,
    ),
    Fault(
        "functions-are-not-inlined",
        _NORMALIZE,
        "    _run(model, steps.InlinePass(), ",
        "    _run(model, ",
        "nodes stay calls of functions that no partition brings along",
        _TEST_NORMALIZE,
    ),
    Fault(
        "defaults-stay-required-inputs",
        _NORMALIZE,
        "steps.RemoveInitializersFromInputsPass(), ",
        "",
        "an initializer that is an input stays one, which every request must bring",
        _TEST_NORMALIZE,
    ),
    Fault(
        "nodes-stay-unsorted",
        _NORMALIZE,
        ", steps.TopologicalSortPass())\n",
        ")\n",
        "a file whose nodes are in no order to run in is cut as it is",
        _TEST_NORMALIZE,
    ),
    Fault(
        "nested-weights-stay-nested",
        _NORMALIZE,
        "        steps.LiftSubgraphInitializersToMainGraphPass(),\n",
        "",
        "the weights of nested graphs are copied into the file with their node",
        _TEST_NORMALIZE,
    ),
    Fault(
        "output-weight-loses-its-name",
        _NORMALIZE,
        "            node.outputs[0].name = name\n",
        '            node.outputs[0].name = f"{name}.output"\n',
        "an output that is an initializer gets another name",
        _TEST_NORMALIZE,
    ),
    Fault(
        "cut-tensors-become-outputs",
        _STAGE,
        "    del model.graph.outputs[count:]\n",
        "    del model.graph.outputs[count + 1 :]\n",
        "a tensor to cut at becomes an output of the plan",
        _TEST_STAGE,
    ),
    Fault(
        "defaults-hinder-fusion",
        _STAGE,
        "    inputs = [value for value in proto.graph.input if value.name not in constants]\n",
        "    inputs = list(proto.graph.input)\n",
        "weights that are inputs are not fused, or stay required",
        _TEST_STAGE,
    ),
    Fault(
        "fusions-are-not-seen",
        _STAGE,
        '    return frozenset(plain - _values_after(path, folder, "portable"))\n',
        '    return frozenset(plain - _values_after(path, folder, "none"))\n',
        "no node is known to be fused with another",
        _TEST_STAGE,
    ),
    Fault(
        "names-in-nested-graphs-stay-old",
        "compiler/hyps_compiler/canonical.py",
        "        for nested in _nested(node):\n            _rename(nested, names)\n",
        "",
        "a nested graph reads a value by the name it had before",
        test_files("compiler/test_canonical property/test_random_models"),
    ),
    Fault(
        "external-data-elsewhere",
        _IRFILE,
        "    set_base_dir(model.graph, os.fspath(path.parent))\n",
        "    set_base_dir(model.graph, os.curdir)\n",
        "external data is looked for where the command was started",
        _TEST_IRFILE,
    ),
    Fault(
        "sparse-weight-transposed",
        _IRFILE,
        "np.ravel_multi_index(tuple(indices.T), dims)",
        "np.ravel_multi_index(tuple(indices.T[::-1]), dims[::-1])",
        "a sparse weight is made dense column by column",
        _TEST_IRFILE,
    ),
    Fault(
        "map-type-lost",
        _IRFILE,
        "    info = ir.serde.serialize_value(value)\n    _give_type(value, info)\n    return info\n",
        "    return ir.serde.serialize_value(value)\n",
        "a partition declares a map as nothing at all",
        _TEST_IRFILE,
    ),
    Fault(
        "extent-beyond-the-file",
        "compiler/hyps_compiler/external.py",
        "    if length < 0 or offset + length > available:\n",
        "    if length < 0 or offset > available:\n",
        "external data may reach beyond the end of its file",
        test_files("compiler/test_source"),
    ),
    Fault(
        "given-sizes-become-fixed",
        _MEASURE,
        "    session = _typed_session(path)\n    _annotate",
        "    session = _typed_session(path, shapes)\n    _annotate",
        "a dimension that the user gives a size is frozen in the plan",
        _TEST_MEASURE,
    ),
    Fault(
        "observed-sizes-become-fixed",
        _MEASURE,
        "                value.shape = ir.Shape([None] * len(observed))\n",
        "                value.shape = ir.Shape(observed)\n",
        "what one run shows is declared of every run",
        _TEST_MEASURE,
    ),
    Fault(
        "symbolic-names-lost",
        _MEASURE,
        '    return None if size == "" or (isinstance(size, int) and size < 0) else size\n',
        "    return size if isinstance(size, int) and size >= 0 else None\n",
        "open dimensions lose their names, and with them which ones are equal",
        _TEST_MEASURE,
    ),
    Fault(
        "scalars-of-unknown-rank",
        _MEASURE,
        "        if info.shape or info.name in scalars:\n",
        "        if info.shape:\n",
        "a scalar is declared as of unknown rank",
        _TEST_MEASURE,
    ),
    Fault(
        "unknown-ranks-are-scalars",
        _MEASURE,
        "        if info.shape or info.name in scalars:\n",
        "        if info.shape is not None:\n",
        "a tensor of unknown rank is declared as a scalar",
        _TEST_MEASURE,
    ),
)
