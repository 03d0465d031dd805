"""Faults in writing partitions: what they take and give, and which bytes lie where."""

from mutants.fault import Fault, test_files

_EMIT = "compiler/hyps_compiler/emit.py"
_TESTS = test_files("compiler/test_emit property/test_random_models")

FAULTS = (
    Fault(
        "input-that-it-makes-itself",
        _EMIT,
        "            if value.producer < first and value.name not in seen:\n",
        "            if value.producer <= first and value.name not in seen:\n",
        "a partition asks for what its own first layer makes",
        _TESTS,
    ),
    Fault(
        "border-from-the-wrong-producer",
        _EMIT,
        "    proto.graph.initializer.extend(_initializer",
        "    pairs = zip(part.inputs, part.inputs[::-1], strict=True)\n"
        "    crossed = {str(a.name): str(b.name) for a, b in pairs if (a.dtype, a.shape) == (b.dtype, b.shape)}\n"
        "    for node in proto.graph.node:\n"
        "        node.input[:] = [crossed.get(name, name) for name in node.input]\n"
        "    proto.graph.initializer.extend(_initializer",
        "two inputs of a partition that are of one type and shape are taken for each other",
        _TESTS,
    ),
    Fault(
        "inner-output-not-given",
        _EMIT,
        "if v.is_output or used_in.get(v.name, set()) - {index}]",
        "if (v.is_output and v.name not in used_in) or used_in.get(v.name, set()) - {index}]",
        "an output of the model that its own partition reads on is not given",
        _TESTS,
    ),
    Fault(
        "everything-is-given",
        _EMIT,
        "if v.is_output or used_in.get(v.name, set()) - {index}]",
        "if v.is_output or used_in.get(v.name, set())]",
        "what nobody else reads leaves its partition",
        _TESTS,
    ),
    Fault(
        "output-order-swapped",
        "compiler/hyps_compiler/driver.py",
        "            outputs=emit.named_tensors(graph.outputs),\n",
        "            outputs=emit.named_tensors(graph.outputs[::-1]),\n",
        "the plan's outputs stand in another order than the model's",
        test_files("compiler/test_driver"),
    ),
    Fault(
        "constants-behind-their-readers",
        _EMIT,
        "    return (*constants, *(node for layer in layers for node in layer.nodes))\n",
        "    return (*(node for layer in layers for node in layer.nodes), *constants)\n",
        "a partition's nodes stand in no order to run in",
        _TESTS,
    ),
    Fault(
        "weight-of-the-same-size",
        _EMIT,
        "_chunks(weight.const_value)):\n",
        "_chunks(next(w.const_value for w in weights if nbytes_of(w) == nbytes_of(weight)))):\n",
        "a weight gets the bytes of another that is as large",
        _TESTS,
    ),
    Fault(
        "small-weights-swapped",
        _EMIT,
        "    proto.graph.input.extend(serialize_value(value) for value in part.inputs)\n",
        "    for one, other in zip(proto.graph.initializer[::2], proto.graph.initializer[1::2]):\n"
        "        if (one.dims, one.data_type) == (other.dims, other.data_type):\n"
        "            one.name, other.name = other.name, one.name\n"
        "    proto.graph.input.extend(serialize_value(value) for value in part.inputs)\n",
        "two weights of one type and shape are taken for each other",
        _TESTS,
    ),
    Fault(
        "tied-weight-written-twice",
        _EMIT,
        "        if len(users[key]) > 1:\n",
        "        if len(users[key]) > 2:\n",
        "a weight that two partitions share is in both of their files",
        _TESTS,
    ),
    Fault(
        "padding-not-counted",
        _EMIT,
        "            offset = start + len(padding)\n",
        "            offset = start\n",
        "a weight is said to begin where its padding does",
        _TESTS,
    ),
    Fault(
        "length-with-padding",
        _EMIT,
        "(Path(path).name, offset, file.tell() - offset)",
        "(Path(path).name, offset, file.tell() - start)",
        "a weight is said to be as long as it is with its padding",
        _TESTS,
    ),
    Fault(
        "weights-not-aligned",
        _EMIT,
        "(_PAGE if weight.const_value.nbytes >= _PAGE else 64)",
        "64",
        "large weights cannot be mapped: they do not begin at a page",
        _TESTS,
    ),
    Fault(
        "read-from-the-files-beginning",
        _EMIT,
        "        file.seek(tensor.offset or 0)\n",
        "        file.seek(0)\n",
        "every weight is read from the beginning of the staged file",
        _TESTS,
    ),
    Fault(
        "open-dimension-lost",
        _EMIT,
        "    return tuple(d if isinstance(d, int) else d.value for d in value.shape.dims)\n",
        "    return tuple(d if isinstance(d, int) else 1 for d in value.shape.dims)\n",
        "the plan declares a batch of 1 where the model takes any",
        _TESTS,
    ),
    Fault(
        "every-border-is-float32",
        _EMIT,
        "else str(value.type.dtype.numpy())\n",
        'else "float32"\n',
        "the plan declares the wrong element type",
        test_files("compiler/test_emit compiler/test_driver property/test_random_models"),
    ),
    Fault(
        "wrong-opset",
        _EMIT,
        "        onnx.OperatorSetIdProto(domain=domain, version=version)\n",
        "        onnx.OperatorSetIdProto(domain=domain, version=max(version, 13))\n",
        "partitions of an old model are read by newer rules",
        _TESTS,
    ),
    Fault(
        "digest-without-padding",
        _EMIT,
        "                digest.update(chunk)\n",
        "                digest.update(chunk.lstrip(bytes(1)))\n",
        "the plan's digest is not that of the file",
        _TESTS,
    ),
)
