"""PyTorch's files without PyTorch: told apart by what they hold, looked through for code, and never unpickled."""

import collections
import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hyps.errors import ModelError
from hyps_compiler.convert import convert
from hyps_compiler.convert.archives import check_content, content_of, documents, is_program, runs_code
from hyps_compiler.convert.kinds import kind_of
from hyps_compiler.convert.screening import find_code, find_member, is_arithmetic

PROGRAM = {"m/archive_format": b"pt2", "m/models/model.json": b"{}", "m/data/weights/weight_0": bytes(64)}
SCRIPT = {"m/code/__torch__.py": b"class M(Module):\n", "m/constants.pkl": b"\x80\x02).", "m/data.pkl": b"\x80\x02}."}
COMPILED = {"m/archive_format": b"pt2", "m/data/aotinductor/model/a.so": b"\x7fELF"}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def weights_pickle() -> bytes:
    """Return what PyTorch writes for a state dict, with no tensor in it."""
    return pickle.dumps(collections.OrderedDict(bias=[1.0, 2.0]), protocol=2)


@pytest.mark.parametrize(
    ("members", "content"),
    [
        (PROGRAM, "exported"),
        ({"serialized_exported_program.json": b"{}", "version": b"8.0"}, "exported"),
        (SCRIPT, "scripted"),
        (COMPILED, "compiled"),
        (PROGRAM | COMPILED, "compiled"),  # PyTorch's reader would load the library beside the program
        ({"m/data.pkl": weights_pickle(), "m/data/0": bytes(8)}, "weights"),
        ({"m/data.pkl": pickle.dumps(Evil(Path("x")), protocol=2)}, "module"),
        ({"word/document.xml": b"<w/>"}, "other"),
    ],
)
def test_content_is_told_by_the_members(tmp_path: Path, members: dict[str, bytes], content: str) -> None:
    path = write(tmp_path / "m.pt", members)
    assert content_of(path) == content
    assert is_program(path) == (content == "exported")
    assert runs_code(path) == (content != "exported")


def test_kinds_go_by_content_not_only_by_suffix(tmp_path: Path) -> None:
    program, script = kind_of(write(tmp_path / "a.pt", PROGRAM)), kind_of(write(tmp_path / "b.TS", SCRIPT))
    assert program is not None
    assert script is not None
    assert (program.name, script.name) == ("torch-export", "torch-script")
    assert kind_of(tmp_path / "missing.pt") is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_old_files_are_pickles_without_an_archive(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(pickle.dumps({"weight": 1.0}, protocol) + weights_pickle())
    assert content_of(path) == "weights"
    path.write_bytes(pickle.dumps({"weight": 1.0}, protocol) + pickle.dumps(Evil(tmp_path / "mark"), protocol))
    assert content_of(path) == "module"
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("in_archive", [True, False])
def test_pickles_are_refused_and_not_run(tmp_path: Path, protocol: int, in_archive: bool) -> None:
    evil = pickle.dumps({"model": Evil(tmp_path / "mark")}, protocol)
    path = tmp_path / "m.pt"
    write(path, {"m/data.pkl": evil}) if in_archive else path.write_bytes(evil)
    with pytest.raises(ModelError, match="is to run whatever code is in it") as caught:
        convert(path, tmp_path / "m.onnx")
    assert caught.value.code == "E_UNTRUSTED"
    assert "--trust" in caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_scripts_are_refused_without_trust(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is to run whatever code is in it"):
        convert(write(tmp_path / "m.ts", SCRIPT), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"m/data.pkl": weights_pickle()}, "holds weights only"),
        (COMPILED, "holds machine code"),
        ({"a.txt": b"a"}, "is no PyTorch archive"),
    ],
)
def test_what_holds_no_network_is_refused_with_the_way_out(
    tmp_path: Path, members: dict[str, bytes], wanted: str
) -> None:
    with pytest.raises(ModelError, match=wanted) as caught:
        convert(write(tmp_path / "m.pt", members), tmp_path / "m.onnx", trust=True)
    assert "torch.export.save" in caught.value.hint


def test_damage_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.pt2", PROGRAM).read_bytes()
    for damaged, wanted in [
        (b"", "is empty"),
        (b"plain text", "is no PyTorch file"),
        (whole[:-30], "is cut short or damaged"),
        (whole.replace(bytes(64), bytes(63) + b"\1"), "`m/data/weights/weight_0` in it has a wrong checksum"),
    ]:
        (tmp_path / "m.pt2").write_bytes(damaged)
        with pytest.raises(ModelError, match=wanted):
            convert(tmp_path / "m.pt2", tmp_path / "m.onnx")


@pytest.mark.parametrize("again", ["model.json", "MODEL.json"])
def test_two_members_of_one_name_are_refused(tmp_path: Path, again: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says so itself
        archive.writestr("m/models/model.json", b"{}")
        archive.writestr(f"m/models/{again}", b"[]")
    with pytest.raises(ModelError, match="two members of the same name"):
        list(documents(tmp_path / "m.pt2"))


def test_documents_are_those_that_pytorch_reads(tmp_path: Path) -> None:
    names = {"m/models/model.JSON", "m/models/other", "m/data/weights/config.json"}
    write(tmp_path / "m.pt2", dict.fromkeys([*names, "m/data/weights/weight_0"], b"{}"))
    assert {name for name, _ in documents(tmp_path / "m.pt2")} == names


def test_members_that_are_no_parts_of_a_program_are_found() -> None:
    parts = ["m/models/model.json", "m/data/weights/weight_0", "m/data/sample_inputs/model.pt", "m/.data/version"]
    assert find_member(parts) == ""
    assert find_member([*parts, "m/data/library/a.so"]) == "the member `m/data/library/a.so`"


# --- what a program might run ---


def program(**changes: Any) -> dict[str, Any]:
    """Return a document like a program's, harmless but for the changes."""
    node = {
        "target": "torch.ops.aten.einsum.default",
        "inputs": [{"name": "equation", "arg": {"as_string": "bij,bjk->bik"}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "einsum_1"}}],
        "metadata": {"stack_trace": 'File "a b.py", line 1\n  exec("x")'},
    }
    spec = [1, {"type": "builtins.dict", "context": json.dumps(["left eye", "b.c"]), "children_spec": []}]
    return {
        "graph": {"nodes": [node], "sizes": [{"as_expr": {"expr_str": "Mul(Integer(2), Symbol('s0', integer=True))"}}]},
        "in_spec": json.dumps(spec),
        "guards_code": ["L['left'].size()[0] == 2*L['right'].size()[0]"],
        "config": {"conv.weight": {"path_name": "weight_0"}},
        "torch_version": "2.15.0+cpu",
    } | changes


def found_in(document: Any) -> str:
    return find_code([("model.json", json.dumps(document).encode())])


def test_a_plain_program_is_harmless() -> None:
    assert found_in(program()) == ""


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"target": "torch.hub.load"}, "the operator `torch.hub.load`"),
        ({"target": "torch.ops.load_library"}, "the operator `torch.ops.load_library`"),
        ({"target": "torch.ops.aten.from_file.default"}, "the operator `torch.ops.aten.from_file.default`"),
        ({"target": "torch.ops.aten.__class__.mro"}, "the operator"),
        ({"target": "torch.ops.mine.op.default"}, "the operator `torch.ops.mine.op.default`"),
        ({"target": "torch.ops.higher_order.call_torchbind"}, "the operator"),
        ({"target": "_operator.attrgetter"}, "the operator"),
        ({"target": "#extension"}, "the operator"),
        ({"as_operator": "torch.os.system"}, "the operator"),
        ({"expr_str": "__import__('os').system('true')"}, "the expression"),
        ({"expr_str": "Symbol('exec(1)')"}, "the expression"),
        ({"guards_code": ["exit()"]}, "the expression `exit()`"),
        ({"guards_code": ["L['x'].size.__globals__"]}, "the expression"),
        ({"guards_code": ["True, ''); exit()"]}, "the expression"),
        ({"guards_code": ["L['a\"'].size()[0] == 1"]}, "the expression"),
        ({"in_spec": json.dumps([1, {"context": json.dumps(['x"); exit() #'])}])}, "the key"),
        ({"out_spec": json.dumps([1, {"__enum__": True, "fqn": "os:x"}])}, "a container of a class"),
        ({"out_spec": json.dumps([1, {"context": json.dumps({"default_factory_module": "os"})}])}, "a container"),
        ({"out_spec": "[1, "}, "the structure"),
        ({"config": {"a": {"path_name": "custom_obj_0"}}}, "the custom object `custom_obj_0`"),
        ({"config": {"a": {"path_name": "opaque_obj_0"}}}, "the custom object"),
        ({"name": "x=exit()"}, "the name `x=exit()`"),
        ({"forward_arg_names": ["x, y=exit()"]}, "the name"),
        ({"range_constraints": {"exit()": {}}}, "the name `exit()`"),
    ],
)
def test_what_might_run_is_found(change: dict[str, Any], wanted: str) -> None:
    assert wanted in found_in(program(**change))
    assert wanted in found_in({"deep": [[program(**change)]]})


def test_what_is_no_json_is_found() -> None:
    assert find_code([("m/model.json", b"\xff{")]) == "`m/model.json`, which is no JSON"
    assert find_code([("m/model.json", b"[" * 100_000)])


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 + 1",
        "Max(s0, u1) <= 4",
        "L['x'].size()[0] % 8 == 0",
        "FloorDiv(s0, 2)",
        " + ".join(["s0**2", "Pow(s1, -1)", "(s0**2 + 1)**3", "(1 << 4)"] * 20),
    ],
)
def test_arithmetic_passes(text: str) -> None:
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text", ["", "a = 1", "lambda: s0", "[s0 for s0 in L]", "s0.__class__", "s0(1)(2)", "s0\n", "9" * 30_000]
)
def test_other_python_does_not(text: str) -> None:
    assert not is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9", "((9**99)**99)**99", "Pow(Pow(9, 999), 999)", "Pow(9, exp=9)", "1 << 10**9", "9**s0", "9**(9*9)"],
)
def test_numbers_too_long_to_be_computed_do_not(text: str) -> None:
    assert not is_arithmetic(text)


def test_pickles_in_archives_are_read_to_their_end_only(tmp_path: Path) -> None:
    """A pickle cut short is no network, and no reason to fail."""
    buffer = io.BytesIO(pickle.dumps({"a": 1}, 2)[:-1])
    path = write(tmp_path / "m.pt", {"m/data.pkl": buffer.getvalue()})
    assert content_of(path) == "module"
    check_content(path)
