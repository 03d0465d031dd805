"""HyPS as an ONNX backend: what runs a model through `onnx.backend.base` runs it in partitions.

import hyps_compiler.backend as backend

outputs = backend.prepare(model, cut="all").run([image])
"""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto
from onnx.backend.base import Backend, BackendRep

from hyps.client import InferenceSession
from hyps.errors import HypsError, TensorError
from hyps.formats.plan import Plan
from hyps_compiler import compile as compile_model

__all__ = ["HypsBackend", "HypsRep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class HypsRep(BackendRep):
    """A model cut into partitions and ready to run; its files live as long as this.

    Attributes:
        plan: what the model was cut into.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Open the `plan` in `folder`, which is removed when this is no longer used."""
        self.plan = plan
        self._session = InferenceSession(folder / "plan", threads=1)
        self._finalize = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in the model's order.

        Args:
            inputs: a sequence in the order of the model's inputs, a mapping from their names, or the one input itself.
            kwargs: nothing is understood; there so that any caller of a backend may call this one.

        Raises:
            TensorError: the inputs are not the model's.
            ExecutionError: onnxruntime failed on them.
        """
        return tuple(self._session.run(None, self._feeds(inputs)))

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        names = [info.name for info in self._session.get_inputs()]
        values = inputs if isinstance(inputs, list | tuple) else [inputs]
        if len(values) > len(names):
            raise TensorError(f"{len(values)} inputs were given and the model has {len(names)}")
        return dict(zip(names, values, strict=False))


class HypsBackend(Backend):
    """Compiles a model into a plan and runs that."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Return whether the model can be compiled, which is what onnxruntime can run; `kwargs` as of `prepare`."""
        try:
            cls.prepare(model, device, **kwargs)
        except HypsError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto | str | Path, device: str = "CPU", **kwargs: Any) -> HypsRep:
        """Cut the model and return what runs it.

        Args:
            model: a model, or its file, beside which its external data lies.
            device: `CPU`.
            kwargs: options of `hyps_compiler.compile`, such as `cut="all"`; without any the model is left whole and the
                plan is not verified.

        Raises:
            HypsError: the model cannot be compiled, or `device` is another one.
        """
        if not cls.supports_device(device):
            raise HypsError(f"device `{device}` is not supported", "use `CPU`")
        folder = Path(tempfile.mkdtemp(prefix="hyps-backend-"))
        try:
            path = folder / "model.onnx"
            if isinstance(model, ModelProto):
                onnx.save(model, path)
            else:
                path = Path(model)
            return HypsRep(folder, compile_model(path, folder / "plan", **{"verify": False, **kwargs}))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @classmethod
    def run_model(
        cls, model: ModelProto | str | Path, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Return the outputs of one run; see `prepare` and `HypsRep.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Return the outputs of one node.

        Args:
            node: the node; inputs it leaves out have empty names.
            inputs: arrays for the others, in order.
            device: `CPU`.
            outputs_info: not needed: types are inferred.
            kwargs: `opset_version`, default 21; the rest as of
                `prepare`.
        """
        names = [name for name in node.input if name]
        arrays = inputs if isinstance(inputs, list | tuple) else [inputs]
        infos = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        opset = onnx.helper.make_opsetid(node.domain, int(kwargs.pop("opset_version", _NODE_OPSET)))
        graph = onnx.helper.make_graph([node], "node", infos, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_NODE_IR_VERSION)
        return cls.run_model(model, list(arrays), device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether it is the CPU."""
        return device == "CPU"


_NODE_OPSET = 21
_NODE_IR_VERSION = 10
"""What onnxruntime has released for years."""

is_compatible = HypsBackend.is_compatible
prepare = HypsBackend.prepare
run_model = HypsBackend.run_model
run_node = HypsBackend.run_node
supports_device = HypsBackend.supports_device
