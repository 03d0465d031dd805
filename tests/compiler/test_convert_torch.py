"""Conversion with PyTorch: real exported programs, scripts and pickles, answers compared with PyTorch's own."""

import importlib.util
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from hyps.errors import DifferenceError, HypsError, ModelError, UsageError
from hyps_compiler.cli import main
from hyps_compiler.convert import convert
from hyps_compiler.convert.conversion import OutputAgreement
from hyps_compiler.convert.request import MODEL_NAME, Made, Request

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None,
        reason='needs `pip install "hyps[torch]"`',
    ),
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own, of classes that only it knows
]

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back what a conversion in this process sets for good in a process of its own."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- models ---


def module(forward: Callable[..., Any], **parts: Any) -> Any:
    """Return a module with the given parts, whose `forward` is a function of it and the inputs."""
    import torch

    made = type("Net", (torch.nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, torch.Tensor):
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made.eval()


def convnet() -> Any:
    from torch import nn

    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self: Any, image: Any) -> Any:
        x = self.pool(self.norm(self.conv(image)).relu())
        x = self.pool(self.deep(x).relu())
        return self.head(self.drop(x.flatten(1)))

    return module(
        forward,
        conv=nn.Conv2d(3, 8, 3, padding=1),
        norm=norm,
        pool=nn.MaxPool2d(2),
        deep=nn.Conv2d(8, 8, 3, padding=1),
        drop=nn.Dropout(0.5),
        head=nn.Linear(128, 5),
    )


def lstm() -> Any:
    from torch import nn

    def forward(self: Any, tokens: Any) -> Any:
        return self.head(self.lstm(self.table(tokens))[0][:, -1])

    parts = {"table": nn.Embedding(60, 16), "lstm": nn.LSTM(16, 12, batch_first=True, bidirectional=True)}
    return module(forward, **parts, head=nn.Linear(24, 3))


def two_inputs() -> Any:
    from torch import cat, nn

    def forward(self: Any, zebra: Any, apple: Any) -> Any:
        left, right = self.a(zebra), self.b(apple)
        return {"score": (left * right).sum(-1), "both": cat([left, right], 1)}

    return module(forward, a=nn.Linear(8, 4), b=nn.Linear(6, 4))


def nested_inputs() -> Any:
    from torch import nn

    def forward(self: Any, features: Any, *, scale: Any) -> Any:
        return self.a(features["x"]) * features["y"] * scale, features["x"]

    return module(forward, a=nn.Linear(8, 4))


def encoder() -> Any:
    from torch import nn, randn

    def forward(self: Any, tokens: Any) -> Any:
        return self.head(self.layers(tokens + self.position).mean(1))

    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    return module(forward, layers=nn.TransformerEncoder(layer, 1), head=nn.Linear(16, 3), position=randn(1, 6, 16))


def tied() -> Any:
    from torch import arange, nn

    made = module(lambda self, tokens: self.head(self.table(tokens)) + self.shift, shift=arange(40.0))
    made.table, made.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
    made.head.weight = made.table.weight
    return made


def branches() -> Any:
    import torch

    return module(
        lambda self, x: torch.cond(x.sum() > 0, lambda x: self.a(x).relu(), lambda x: x * 2, (x,)),
        a=torch.nn.Linear(4, 4),
    )


def normed() -> Any:
    from torch import nn
    from torch.nn.functional import gelu

    def forward(self: Any, x: Any) -> Any:
        return self.layer(self.up(gelu(self.group(self.conv(x)))).permute(0, 2, 3, 1))

    parts = {"conv": nn.Conv2d(3, 8, 3), "group": nn.GroupNorm(2, 8), "layer": nn.LayerNorm(8)}
    return module(forward, **parts, up=nn.Upsample(scale_factor=2.0, mode="bilinear"))


def numbers(*shape: int) -> Any:
    import torch

    return torch.randn(shape)


def words(*shape: int) -> Any:
    import torch

    return torch.randint(0, 40, shape)


BATCH = {0: "batch"}
CASES: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, dict[str, Any]]], Any, list[str], list[str]]] = {
    "convnet": (convnet, lambda: ((numbers(2, 3, 16, 16),), {}), {"image": BATCH}, ["image"], ["output"]),
    "lstm": (lstm, lambda: ((words(2, 7),), {}), {"tokens": BATCH}, ["tokens"], ["output"]),
    "two_inputs": (
        two_inputs,
        lambda: ((numbers(2, 8), numbers(2, 6)), {}),
        {"zebra": BATCH, "apple": BATCH},
        ["zebra", "apple"],
        ["score", "both"],
    ),
    "nested_inputs": (
        nested_inputs,
        lambda: (({"x": numbers(2, 8), "y": numbers(2, 1)},), {"scale": numbers()}),
        None,
        ["features_x", "features_y", "scale"],
        ["output_0", "output_1"],
    ),
    "encoder": (encoder, lambda: ((numbers(2, 6, 16),), {}), {"tokens": BATCH}, ["tokens"], ["output"]),
    "tied": (tied, lambda: ((words(2, 7),), {}), {"tokens": {0: "batch", 1: "length"}}, ["tokens"], ["output"]),
    "branches": (branches, lambda: ((numbers(2, 4),), {}), None, ["x"], ["output"]),
    "normed": (normed, lambda: ((numbers(2, 3, 16, 16),), {}), {"x": BATCH}, ["x"], ["output"]),
}


def export(path: Path, model: Any, args: Any, kwargs: Any = None, open_sizes: Any = None) -> Path:
    """Write a model as an exported program; open sizes are given by name."""
    import torch

    made = {name: torch.export.Dim(name) for sizes in (open_sizes or {}).values() for name in sizes.values()}
    shapes = {key: {axis: made[name] for axis, name in sizes.items()} for key, sizes in (open_sizes or {}).items()}
    program = torch.export.export(model, args, kwargs or {}, dynamic_shapes=shapes or None)
    torch.export.save(program, path)
    return path


def export_case(folder: Path, name: str) -> tuple[Path, Any]:
    build, inputs, open_sizes, _, _ = CASES[name]
    model = build()
    args, kwargs = inputs()
    return export(folder / f"{name}.pt2", model, args, kwargs, open_sizes), model


# --- conversion in this process, where PyTorch is loaded once ---


def convert_here(source: Path, **asked: Any) -> tuple[onnx.ModelProto, Made, tuple[OutputAgreement, ...]]:
    """Convert as the child does, and compare as the parent does."""
    from hyps_compiler.convert import pytorch
    from hyps_compiler.convert.agreement import compare_with_references

    folder = source.parent / "made"
    folder.mkdir()
    request = Request(source=str(source), folder=str(folder), opset=asked.pop("opset", 20), samples=2, **asked)
    made = pytorch.run(request)
    assert made.unverified == ""
    agreement = compare_with_references(folder, folder / MODEL_NAME, made, 1 if request.feeds else 2)
    return onnx.load(folder / MODEL_NAME), made, agreement


def names_of(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", CASES)
def test_programs_answer_as_in_pytorch(tmp_path: Path, name: str) -> None:
    source, _ = export_case(tmp_path, name)
    model, made, agreement = convert_here(source)
    assert names_of(model) == (CASES[name][3], CASES[name][4])
    assert all(found.difference <= 1e-5 and found.varies for found in agreement)
    assert made.framework.startswith("torch ")
    assert made.notes == ()
    if CASES[name][2]:
        assert all(shape_of(value)[0] == "batch" for value in [*model.graph.input, *model.graph.output])
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", ["convnet", "encoder"])
def test_nothing_of_the_makers_machine_stays(tmp_path: Path, name: str) -> None:
    source, _ = export_case(tmp_path, name)
    model, _, _ = convert_here(source)
    content = model.SerializeToString()
    assert b"pkg.torch" not in content
    assert __file__.encode() not in content
    assert b"site-packages" not in content
    assert not model.functions
    assert {item.domain for item in model.opset_import} == {""}


def test_nodes_are_named_by_the_modules_they_are_from(tmp_path: Path) -> None:
    source, _ = export_case(tmp_path, "convnet")
    model, _, _ = convert_here(source)
    assert [node.name for node in model.graph.node] == [
        "conv/Conv",  # with the batch-norm folded into it
        "Relu",
        "pool/MaxPool",
        "deep/Conv",
        "Relu_1",
        "pool/MaxPool_1",
        "Reshape",
        "head/Gemm",
    ]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["convnet", "lstm", "encoder", "tied"])
def test_batch_stays_open(tmp_path: Path, name: str, batch: int) -> None:
    import torch

    source, model = export_case(tmp_path, name)
    convert_here(source)
    (like,) = CASES[name][1]()[0]
    given = words(batch, *like.shape[1:]) if like.dtype == torch.int64 else numbers(batch, *like.shape[1:])
    session = onnxruntime.InferenceSession(tmp_path / "made" / MODEL_NAME, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {CASES[name][3][0]: given.numpy()})
    wanted = model(given).detach().numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", [18, 22])
def test_opset_can_be_chosen(tmp_path: Path, opset: int) -> None:
    source, _ = export_case(tmp_path, "normed")
    model, _, _ = convert_here(source, opset=opset)
    assert model.opset_import[0].version == opset


def test_open_sizes_can_be_fixed(tmp_path: Path) -> None:
    source, _ = export_case(tmp_path, "tied")
    model, _, _ = convert_here(source, inputs={"tokens": (3, None)})
    assert shape_of(model.graph.input[0]) == [3, "tokens_dim1"]
    assert shape_of(model.graph.output[0]) == [3, "tokens_dim1", 40]


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({"zebra": (1, 7)}, "the input `zebra` cannot have the shape 1 x 7: the model takes ? x 8"),
        ({"zebra": (1, 8, 1)}, "the input `zebra` cannot have the shape 1 x 8 x 1: the model takes ? x 8"),
        ({"zebra": (1, 8), "apple": (2, 6)}, "the input `apple` cannot have the shape 2 x 6: the model takes ? x 6"),
        ({"zoo": (1,)}, "the model has no input `zoo`; its inputs are `zebra`, `apple`"),
    ],
)
def test_impossible_shapes_are_refused(tmp_path: Path, inputs: dict[str, tuple[int | None, ...]], wanted: str) -> None:
    source, _ = export_case(tmp_path, "two_inputs")
    with pytest.raises(UsageError) as caught:
        convert_here(source, inputs=inputs)
    assert caught.value.message == wanted


def test_half_precision_agrees(tmp_path: Path) -> None:
    import torch

    net = module(lambda self, x: self.a(x), a=torch.nn.Linear(4, 4)).half()
    _, _, agreement = convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4).half(),)))
    assert agreement[0].difference <= 1e-2


def test_what_onnxruntime_cannot_compute_is_refused(tmp_path: Path) -> None:
    import torch

    net = module(lambda self, x: self.a(x), a=torch.nn.Linear(4, 4)).bfloat16()
    with pytest.raises(ModelError, match=r"computes in bfloat16 \(`a.weight`\)"):
        convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4).bfloat16(),)))


def test_what_the_exporter_lacks_is_named(tmp_path: Path) -> None:
    import torch

    net = module(lambda self, x: torch.linalg.eigvalsh(x @ x.mT))
    with pytest.raises(ModelError, match=r"uses the operator `aten\.\w+") as caught:
        convert_here(export(tmp_path / "m.pt2", net, (numbers(3, 3),)))
    assert "torch.onnx cannot express" in caught.value.message


@pytest.mark.parametrize("part", ["Dropout", "BatchNorm1d"])
def test_training_mode_is_refused(tmp_path: Path, part: str) -> None:
    from torch import nn

    layer = nn.Dropout(0.5) if part == "Dropout" else nn.BatchNorm1d(4)
    net = module(lambda self, x: self.a(x), a=layer).train()
    with pytest.raises(ModelError, match="was exported in training mode") as caught:
        convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4),)))
    assert "model.eval()" in caught.value.hint


def test_training_mode_without_effect_is_none(tmp_path: Path) -> None:
    from torch import nn

    net = module(lambda self, x: self.b(self.a(x)), a=nn.Linear(4, 4), b=nn.Dropout(0.0)).train()
    convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4),)))


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    net = module(lambda self, x: (x.relu(), 4))
    with pytest.raises(ModelError, match="returns 4, which is no tensor"):
        convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4),)))


def test_outputs_that_are_none_inputs_or_twice_the_same(tmp_path: Path) -> None:
    def forward(self: Any, x: Any) -> Any:
        y = x.relu()
        return y, None, x, y

    model, _, agreement = convert_here(export(tmp_path / "m.pt2", module(forward), (numbers(2, 4),)))
    assert names_of(model) == (["x"], ["output_0", "output_2", "output_3"])
    assert all(found.difference == 0.0 for found in agreement)


def test_state_that_is_lost_is_told(tmp_path: Path) -> None:
    from torch import zeros

    def forward(self: Any, x: Any) -> Any:
        self.count.add_(1)
        return x * self.count

    _, made, agreement = convert_here(export(tmp_path / "m.pt2", module(forward, count=zeros(1)), (numbers(2, 4),)))
    assert "the program changes `count` in every call" in made.notes[0]
    assert agreement[0].difference == 0.0


def test_chance_is_no_agreement(tmp_path: Path) -> None:
    import torch

    net = module(lambda self, x: x + torch.rand_like(x))
    with pytest.raises(DifferenceError, match="does not compute what its source computes in torch"):
        convert_here(export(tmp_path / "m.pt2", net, (numbers(2, 4),)))


# --- programs that run code ---


def tampered(source: Path, change: Callable[[dict[str, Any]], None], added: dict[str, bytes] | None = None) -> Path:
    """Return a copy of a program's archive with another `model.json`, and with members added or replaced."""
    target = source.with_name("evil.pt2")
    added = added or {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            content = added.get(info.filename.partition("/")[2]) or old.read(info)
            if info.filename.endswith("models/model.json"):
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            new.writestr(info.filename, content)
    return target


def evil_size(document: dict[str, Any], mark: Path) -> None:
    sizes = document["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = f"__import__('os').mkdir({str(mark)!r}) or 2"


def evil_guard(document: dict[str, Any], mark: Path) -> None:
    document["guards_code"] = [f"__import__('os').mkdir({str(mark)!r}) is None"]


@pytest.mark.parametrize("change", [evil_size, evil_guard])
def test_code_in_a_program_runs_in_pytorch_and_not_here(
    tmp_path: Path, change: Callable[[dict[str, Any], Path], None]
) -> None:
    import torch

    source, _ = export_case(tmp_path, "convnet")
    mark = tmp_path / "mark"
    evil = tampered(source, lambda document: change(document, mark))
    with pytest.raises(ModelError, match="which PyTorch might run as code") as caught:
        convert_here(evil)
    assert caught.value.code == "E_UNTRUSTED"
    assert not mark.exists()
    try:  # the attack is real: PyTorch's reader, asked directly, falls for it
        torch.export.load(evil).module()(numbers(2, 3, 16, 16))
    except Exception:  # of the nonsense that the attack leaves
        assert mark.exists()
    assert mark.exists()


def test_a_pickle_for_a_weight_is_not_run(tmp_path: Path) -> None:
    import io

    import torch

    source, _ = export_case(tmp_path, "convnet")
    mark = tmp_path / "mark"
    with zipfile.ZipFile(source) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        config = json.loads(archive.read(f"{folder}/data/weights/model_weights_config.json"))
    config["config"]["conv.bias"]["use_pickle"] = True
    pickled = io.BytesIO()
    torch.save(Evil(mark), pickled)
    place = f"data/weights/{config['config']['conv.bias']['path_name']}"
    evil = tampered(
        source,
        lambda document: None,
        {place: pickled.getvalue(), "data/weights/model_weights_config.json": json.dumps(config).encode()},
    )
    with pytest.raises(ModelError, match="cannot load the exported program"):
        convert_here(evil)
    assert not mark.exists()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "0"
    with pytest.raises(Exception, match=r"."):  # whatever the reader makes of the thing
        torch.export.load(evil).module()(numbers(2, 3, 16, 16))
    assert mark.exists()


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_operators_of_strangers_need_trust(tmp_path: Path) -> None:
    import torch

    with torch.library._scoped_library("hyps_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("twice", lambda x: torch.empty_like(x), "Meta")
        net = module(lambda self, x: torch.ops.hyps_test.twice(x))
        source = export(tmp_path / "m.pt2", net, (numbers(2, 4),))
        with pytest.raises(ModelError, match=r"the operator `torch\.ops\.hyps_test\.twice\.default`"):
            convert_here(source)
        (tmp_path / "made").rmdir()
        with pytest.raises(ModelError, match=r"uses the operator `hyps_test\.twice`"):
            convert_here(source, trust=True)


# --- scripts ---


def save_script(path: Path, scripted: Any) -> Path:
    scripted.save(str(path))
    return path


LOOP = """
import torch

class Loop(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(4, 4)
        self.table = torch.nn.Embedding(10, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        for _ in range(3):
            if bool(x.sum() > 0):
                x = self.a(x)
            else:
                x = self.drop(x) * 2
        return x

    @torch.jit.export
    def look_up(self, tokens):
        return self.table(tokens)
"""


@pytest.fixture
def own_module(tmp_path: Path) -> Any:
    """Return a module of Python in a file, as scripts need source code."""
    (tmp_path / "own_module.py").write_text(LOOP)
    spec = importlib.util.spec_from_file_location("own_module", tmp_path / "own_module.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_traces_tell_their_inputs_and_keep_the_batch_open(tmp_path: Path) -> None:
    import torch

    traced = torch.jit.trace(convnet(), numbers(2, 3, 16, 16))
    model, _, agreement = convert_here(save_script(tmp_path / "m.ts", traced), trust=True)
    assert names_of(model) == (["image"], ["output"])
    assert shape_of(model.graph.input[0]) == ["batch", 3, 16, 16]
    assert shape_of(model.graph.output[0]) == ["batch", 5]
    assert agreement[0].difference <= 1e-5
    assert agreement[0].varies


def test_a_batch_that_the_trace_fixed_stays_fixed(tmp_path: Path) -> None:
    import torch

    traced = torch.jit.trace(module(lambda self, x: x.reshape(2, 6) @ x.reshape(6, 2)), numbers(2, 2, 3))
    model, _, _ = convert_here(save_script(tmp_path / "m.pt", traced), trust=True)
    assert shape_of(model.graph.input[0]) == [2, 2, 3]


def test_traces_of_words_need_no_shapes(tmp_path: Path) -> None:
    import torch

    model, _, agreement = convert_here(
        save_script(tmp_path / "m.torchscript", torch.jit.trace(lstm(), words(2, 7))), trust=True
    )
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert agreement[0].difference <= 1e-5


def test_scripts_keep_their_loops_and_are_put_into_evaluation_mode(tmp_path: Path, own_module: Any) -> None:
    import torch

    source = save_script(tmp_path / "m.ts", torch.jit.script(own_module.Loop().train()))
    model, _, agreement = convert_here(source, trust=True, inputs={"x": (None, 4)})
    assert names_of(model) == (["x"], ["output"])
    assert {"Loop", "If"} & {node.op_type for node in model.graph.node}
    assert agreement[0].difference <= 1e-5


def test_scripts_with_options_are_refused(tmp_path: Path) -> None:
    import torch

    source = save_script(tmp_path / "m.ts", torch.jit.script(torch.nn.MultiheadAttention(4, 1)))
    with pytest.raises(ModelError, match=r"takes `key_padding_mask` as Optional\[Tensor\], with a default"):
        convert_here(source, trust=True)


def test_shapes_of_scripts_are_asked_for(tmp_path: Path, own_module: Any) -> None:
    import torch

    source = save_script(tmp_path / "m.ts", torch.jit.script(own_module.Loop()))
    with pytest.raises(UsageError) as caught:
        convert_here(source, trust=True)
    assert caught.value.message == "`m.ts` does not say what shape its input `x` has"
    assert "--input x:?x3x224x224" in caught.value.hint
    (tmp_path / "made").rmdir()
    with pytest.raises(UsageError, match="the model has no input `y`; its inputs are `x`"):
        convert_here(source, trust=True, inputs={"y": (1, 4)})


def test_scripts_that_take_integers_need_a_request(tmp_path: Path) -> None:
    import torch

    source = save_script(tmp_path / "m.ts", torch.jit.script(torch.nn.Embedding(10, 4)))
    with pytest.raises(ModelError, match=r"fails on inputs of the given shapes \(input float32 2 x 11\)"):
        convert_here(source, trust=True, inputs={"input": (None, None)})
    (tmp_path / "made").rmdir()
    np.savez(tmp_path / "x.npz", input=np.arange(6).reshape(2, 3))
    model, _, agreement = convert_here(
        source, trust=True, inputs={"input": (None, None)}, feeds=str(tmp_path / "x.npz")
    )
    assert shape_of(model.graph.input[0]) == ["batch", "input_dim1"]
    assert agreement[0].difference == 0.0


def test_scripts_are_not_loaded_without_trust(tmp_path: Path) -> None:
    import torch

    source = save_script(tmp_path / "m.pt2", torch.jit.script(torch.nn.ReLU()))  # the suffix is no promise
    with pytest.raises(ModelError, match="is a program, which is not run"):
        convert_here(source)


# --- pickled modules ---


def test_pickled_modules_are_exported_where_trusted(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Dropout(0.5)).train()
    torch.save(net, tmp_path / "m.pt")
    model, _, agreement = convert_here(tmp_path / "m.pt", trust=True, inputs={"input": (None, 3, 8, 8)})
    assert names_of(model) == (["input"], ["output"])
    assert shape_of(model.graph.output[0]) == ["batch", 4, 6, 6]
    assert agreement[0].difference <= 1e-5


def test_other_pickles_are_no_modules(tmp_path: Path) -> None:
    import torch

    torch.save({"net": torch.nn.ReLU()}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="holds a dict, not a module of PyTorch"):
        convert_here(tmp_path / "m.pt", trust=True)


# --- from outside ---


def test_convert_runs_in_a_child_and_tells_what_came_of_it(tmp_path: Path) -> None:
    source, _ = export_case(tmp_path, "convnet")
    conversion = convert(source, tmp_path / "m.onnx")
    assert conversion.kind == "torch-export"
    assert conversion.opset == 20
    assert conversion.nodes == 8
    assert conversion.difference is not None
    assert conversion.difference <= 1e-5
    assert conversion.constant_outputs == ()
    assert conversion.inputs[0].shape == ("batch", 3, 16, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convnet.pt2", "m.onnx"]


def test_real_state_dicts_and_pickles_are_refused_before_pytorch_is_loaded(tmp_path: Path) -> None:
    import torch

    torch.save(convnet().state_dict(), tmp_path / "new.pth")
    torch.save(convnet().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": convnet().state_dict()}, tmp_path / "checkpoint.pth")
    torch.save(torch.nn.ReLU(), tmp_path / "module.pth")
    for name in ("new", "old", "checkpoint"):
        with pytest.raises(ModelError, match="holds weights only"):
            convert(tmp_path / f"{name}.pth", tmp_path / "m.onnx", trust=True)
    with pytest.raises(HypsError, match="is to run whatever code is in it"):
        convert(tmp_path / "module.pth", tmp_path / "m.onnx")


def test_a_program_cut_short_is_refused(tmp_path: Path) -> None:
    source, _ = export_case(tmp_path, "convnet")
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut short or damaged"):
        convert(source, tmp_path / "m.onnx")


def test_compile_takes_a_program(tmp_path: Path) -> None:
    source, model = export_case(tmp_path, "convnet")
    plan = tmp_path / "plan"
    result = CliRunner().invoke(main, ["compile", str(source), "-o", str(plan), "--cut", "pooling"])
    assert result.exit_code == 0, result.output
    image = numbers(1, 3, 16, 16)
    np.save(tmp_path / "image.npy", image.numpy())
    told = CliRunner().invoke(
        main, ["run", str(plan), "-i", f"image={tmp_path / 'image.npy'}", "-o", str(tmp_path / "out.npz")]
    )
    assert told.exit_code == 0, told.output
    assert len(list((plan / "partitions").glob("*.onnx"))) == 3
    wanted = model(image).detach().numpy()
    found: Array = np.load(tmp_path / "out.npz")["output"]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_published_models_answer_as_in_pytorch(tmp_path: Path, name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = getattr(torchvision.models, name)(num_classes=10)
    model.train()(numbers(4, 3, 224, 224))  # gives the batch-norms statistics, so that outputs depend on inputs
    if name == "vit_b_32":
        model.heads.head.weight.data.normal_()  # zero at first
    source = export(tmp_path / "m.pt2", model.eval(), (numbers(2, 3, 224, 224),), open_sizes={"x": BATCH})
    conversion = convert(source, tmp_path / "m.onnx")
    assert conversion.difference is not None
    assert conversion.difference <= 1e-4
    assert conversion.constant_outputs == ()
