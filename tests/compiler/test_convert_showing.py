"""What `hypsc convert` and `hypsc compile` say of a conversion."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from hyps.errors import UsageError
from hyps.formats.plan import NamedTensor
from hyps_compiler.cli import main
from hyps_compiler.cli_options import parse_open_shapes
from hyps_compiler.convert.conversion import Conversion, OutputAgreement
from hyps_compiler.convert.showing import notes, show_conversion, summary, verdict

CLOSE = OutputAgreement(
    output="y", difference=3e-7, absolute=2e-6, tolerance=1e-4, equal_share=0.25, varies=True, steps=None
)
CONVERSION = Conversion(
    kind="keras",
    what="a Keras file",
    framework="keras 3.15.1",
    converter="tf2onnx 1.17.0",
    opset=17,
    nodes=43,
    nbytes=553_000_000,
    inputs=(NamedTensor(name="image", dtype="float32", shape=("batch", 224, None, 3)),),
    outputs=(NamedTensor(name="y", dtype="float32", shape=None),),
    seconds=17.04,
    peak_nbytes=2_400_000_000,
    samples=2,
    agreement=(CLOSE,),
)


def test_everything_is_shown_within_80_columns() -> None:
    shown = show_conversion(CONVERSION, "m.onnx")
    assert max(map(len, shown.splitlines())) <= 80
    for wanted in (
        "batch x 224 x ? x 3",
        "of any rank",
        "43 nodes, 553 MB",
        "17.0 s, 2.40 GB resident at most",
        "3e-07",
    ):
        assert wanted in shown


def test_many_inputs_are_not_all_shown() -> None:
    many = msgspec.structs.replace(CONVERSION, inputs=CONVERSION.inputs * 40)
    assert "and 29 more" in show_conversion(many, "m.onnx")


def test_the_summary_is_one_line() -> None:
    assert summary(CONVERSION) == "keras 3.15.1 by tf2onnx 1.17.0, largest difference 3e-07 of the largest value"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"agreement": (), "unverified": "it was not asked for"}, "not compared: it was not asked for"),
        ({"agreement": (msgspec.structs.replace(CLOSE, equal_share=1.0, difference=0.0),)}, "bit-identical"),
        (
            {"agreement": (msgspec.structs.replace(CLOSE, steps=1.0),)},
            "25.0% of the values equal, others at most 1 step of",
        ),
    ],
)
def test_the_verdict_says_what_was_found(change: dict[str, object], wanted: str) -> None:
    assert wanted in verdict(msgspec.structs.replace(CONVERSION, **change))


def test_agreement_that_proves_little_is_told() -> None:
    assert notes(CONVERSION) == []
    constant = msgspec.structs.replace(CONVERSION, agreement=(msgspec.structs.replace(CLOSE, varies=False),))
    assert "on random inputs `y` hardly changes" in notes(constant)[0]


def test_rounding_that_explains_a_difference_is_told() -> None:
    shaken = msgspec.structs.replace(CONVERSION, agreement=(msgspec.structs.replace(CLOSE, rounding=0.01),))
    assert "rounding alone moves `y` by 1e-02 of its largest value" in notes(shaken)[0]


def test_it_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(CONVERSION), type=Conversion) == CONVERSION


def test_open_sizes_are_question_marks() -> None:
    assert parse_open_shapes(("x:1x?x3", "scope/y:0:2")) == {"x": (1, None, 3), "scope/y:0": (2,)}
    for text in ("x", "x:", ":1", "x:0", "x:-1", "x:1x"):
        with pytest.raises(UsageError, match="is no NAME:SHAPE"):
            parse_open_shapes((text,))


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (("gone.keras", "-o", "m.onnx"), 1, "does not exist"),
        (("m.xyz", "-o", "m.onnx"), 1, "is nothing that can be converted"),
        (("m.xyz", "-o", "there.onnx"), 1, "add --force to replace it"),
        (("m.xyz", "-o", "data.onnx"), 1, "`data.onnx.data` exists"),
        (("m.xyz", "-o", "m.onnx", "--no-verify", "--inputs", "x.npz"), 2, "leave one of the two out"),
        (("m.xyz", "-o", "m.onnx", "--samples", "0"), 2, "--samples"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.xyz", "there.onnx", "data.onnx.data"):
        Path(name).touch()
    result = CliRunner().invoke(main, ["convert", *arguments], prog_name="hypsc")
    assert (result.exit_code, result.stdout) == (status, "")
    assert wanted in result.stderr
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("place", ["m.keras", "link.onnx"])
def test_the_source_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.keras").write_bytes(b"model")
    Path("link.onnx").symlink_to("m.keras")
    for force in ((), ("--force",)):
        result = CliRunner().invoke(main, ["convert", "m.keras", "-o", place, *force], prog_name="hypsc")
        assert result.exit_code == 1
        assert "which is read and would be lost [E_EXISTS]" in result.stderr
        assert "--force" not in result.stderr
    assert Path("m.keras").read_bytes() == b"model"


def test_nothing_is_written_into_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    result = CliRunner().invoke(main, ["convert", str(tmp_path), "-o", str(tmp_path / "m.onnx"), "--force"])
    assert (result.exit_code, "stays as it is" in result.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model.pb"]
