"""Which TensorFlow operations do nothing but compute: a graph of a stranger's may hold no others.

TensorFlow's operations read and write files, open connections and call Python. Those known to be harmless are let
through, and the unknown is refused with the rest.

Imports TensorFlow: for the child process only.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from hyps.errors import ModelError, printable
from hyps_compiler.convert.graph import translated_operations
from hyps_compiler.convert.request import TRUST_HINT

_HARMLESS = {
    "Assert",
    "Case",
    "DecodeAndCropJpeg",
    "DecodeBmp",
    "DecodeGif",
    "DecodeImage",
    "DecodeJpeg",
    "DecodePng",
    "DecodeRaw",
    "Enter",
    "ParseExample",
    "ParseSingleExample",
    "PartitionedCall",
    "Print",
    "StatefulPartitionedCall",
    "TensorArrayGatherV3",
    "TensorArrayReadV3",
    "TensorArrayScatterV3",
    "TensorArraySizeV3",
    "TensorArrayV3",
    "TensorArrayWriteV3",
}
"""Operations that do nothing but compute although they have a state, or read strings that are no file names."""

_STATE = frozenset(
    "AnonymousHashTable AnonymousMutableHashTable Assign AssignAdd AssignSub AsString IsVariableInitialized"
    " MutableHashTableV2 RandomGamma RandomPoissonV2 StringFormat StringLength StringStrip"
    " StringToHashBucketStrong StaticRegexFullMatch Substr TruncatedNormal UnicodeDecode UnicodeTranscode VarHandleOp"
    " Variable VariableV2".split()
)
"""What models with variables, tables and text beside it are made of: it works in memory."""


def refuse_effects(
    nodes: Iterable[Any], own: Collection[str], source: Path, *, allowed: Collection[str] = (), with_state: bool = False
) -> None:
    """Raise if an operation may do more than compute.

    Args:
        nodes: all that could run, of the graph and of its functions (NodeDef).
        own: names of the functions that the graph brings along.
        source: for the message.
        allowed: operations that are harmless where they stand.
        with_state: whether variables and tables may be read and changed.

    Raises:
        ModelError: there is such an operation.
    """
    known = translated_operations() | _HARMLESS | set(allowed) | (_STATE if with_state else set())
    functions = {name for name in own if op_def_registry.get(name) is None}
    for operation in dict.fromkeys(node.op for node in nodes):
        if operation in known or operation in functions or _is_pure(operation):
            continue
        if not (with_state and _uses_resource(operation)):
            raise ModelError(
                f"`{printable(source.name)}` uses the TensorFlow operation `{printable(operation)}`, which is not known"
                " to do nothing but compute",
                TRUST_HINT,
                code="E_UNTRUSTED",
            )


def _is_pure(operation: str) -> bool:
    """Return whether an operation has no state and takes no string, which could be the name of a file."""
    definition = op_def_registry.get(operation)
    return definition is not None and not definition.is_stateful and not _takes_text(definition)


def _uses_resource(operation: str) -> bool:
    """Return whether an operation works on a variable or table that is there, and takes no string."""
    definition = op_def_registry.get(operation)
    if definition is None or not definition.input_arg or _takes_text(definition):
        return False
    return bool(definition.input_arg[0].type == tf.resource.as_datatype_enum)


def _takes_text(definition: Any) -> bool:
    """Return whether an operation takes a string that is none of a few given words, such as `SAME`."""
    return any(argument.type == tf.string.as_datatype_enum for argument in definition.input_arg) or any(
        "string" in attribute.type and not attribute.HasField("allowed_values") for attribute in definition.attr
    )
