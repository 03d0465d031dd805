"""Recurrent models for tests: any operator, direction, activations, states, lengths, bias and sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from model_fixtures import model_of

Array = NDArray[Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}


@dataclass(frozen=True)
class Recurrent:
    """What a recurrent node is like; `model` and `feeds` make it."""

    op_type: str = "LSTM"
    direction: str = "forward"
    time: int = 5
    batch: int = 2
    inputs: int = 3
    hidden: int = 4
    outputs: tuple[int, ...] = (0, 1)
    """Which outputs are used."""
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    states: bool = False
    peepholes: bool = False
    is_open: bool = False
    """Whether time and batch are open dimensions."""
    opset: int = 17
    dtype: int = TensorProto.FLOAT
    attributes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def rows(self) -> int:
        """Rows of the gates of one direction."""
        return GATES[self.op_type] * self.hidden

    def feeds(self) -> dict[str, Array]:
        """Return a request."""
        made = {"x": self._values(1, self.time, self.batch, self.inputs)}
        if self.lengths is not None:
            made["lengths"] = np.array(self.lengths, np.int32)
        for name in self._state_names():
            made[name] = self._values(2 + ord(name[0]), self.directions, self.batch, self.hidden)
        return made

    def model(self, weights: Callable[[dict[str, Array]], dict[str, Array]] = dict) -> ModelProto:
        """Return the model; each used output has a node behind it, so that it crosses a border."""
        held = {
            "w": self._values(3, self.directions, self.rows, self.inputs, scale=0.6),
            "r": self._values(4, self.directions, self.rows, self.hidden, scale=0.6),
        }
        if self.bias:
            held["b"] = self._values(5, self.directions, 2 * self.rows, scale=0.4)
        if self.peepholes:
            held["p"] = self._values(6, self.directions, 3 * self.hidden, scale=0.5)
        names = ["h0", "c0"][: len(self._state_names())]
        inputs = ["x0", "w", "r", "b" if self.bias else "", "lengths" if self.lengths is not None else "", *names]
        inputs += [""] * (7 - len(inputs)) + ["p"] if self.peepholes else []
        made = [f"made{i}" if i in self.outputs else "" for i in range(max(self.outputs) + 1)]
        node = helper.make_node(
            self.op_type, inputs, made, "cell", hidden_size=self.hidden, direction=self.direction, **self.attributes
        )
        nodes = [helper.make_node("Neg", ["x"], ["x0"]), node]
        nodes += [helper.make_node("Neg", [name], [f"y{name[4:]}"]) for name in made if name]
        outputs = [helper.make_tensor_value_info(f"y{i}", self.dtype, self._dims(i)) for i in self.outputs]
        return model_of(nodes, self._infos(), outputs, weights(held), opset=self.opset)

    def _state_names(self) -> Sequence[str]:
        return ("h0", "c0")[: 2 if self.op_type == "LSTM" else 1] if self.states else ()

    def _dims(self, output: int) -> list[int | str]:
        time: list[int | str] = ["T" if self.is_open else self.time] if output == 0 else []
        return [*time, self.directions, "N" if self.is_open else self.batch, self.hidden]

    def _infos(self) -> list[Any]:
        time, batch = ("T", "N") if self.is_open else (self.time, self.batch)
        infos = [helper.make_tensor_value_info("x", self.dtype, [time, batch, self.inputs])]
        if self.lengths is not None:
            infos.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]))
        states = [self.directions, batch, self.hidden]
        return infos + [helper.make_tensor_value_info(name, self.dtype, states) for name in self._state_names()]

    def _values(self, kind: int, *shape: int, scale: float = 1.0) -> Array:
        rng = np.random.default_rng([self.seed, kind])
        made: Array = (rng.standard_normal(shape) * scale).astype(helper.tensor_dtype_to_np_dtype(self.dtype))
        return made
