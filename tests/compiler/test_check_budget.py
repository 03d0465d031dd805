"""The budget file: what is understood, what is refused, and which tables hold for a model."""

from pathlib import Path

import pytest

from hyps.errors import HypsError
from hyps_compiler.checking import budget as module
from hyps_compiler.checking.budget import Budget, decode_budget, read_budget
from hyps_compiler.checking.figures import GROWING, LIMITS
from hyps_compiler.checking.rules import CompileOptions

WHOLE = """
[defaults]
memory = "256MB"
max_params = "30M"
cut = "pooling,bottleneck"
optimize = "native"
quantize = "int8"
calibration = "samples.npz"
inputs = "x.npz"
input = { image = "1x3x224x224", mask = [1, 7] }
timeout = "2m"
max_tensor_bytes = "4GiB"

[limits]
partition_bytes = "64MB"
partition_params = "10M"
peak_memory = 100_000_000
partitions = 12
border_bytes = "1MiB"
difference = 1e-5
conversion_difference = "1e-4"

[growth]
peak_memory = "5%"
partitions = "0%"

[models."big/*.onnx"]
memory = "1GB"
[models."big/*.onnx".limits]
peak_memory = "1GB"
[models."big/one.onnx".growth]
peak_memory = "12.5%"
"""


def refused(text: str) -> str:
    with pytest.raises(HypsError) as caught:
        decode_budget(text)
    assert caught.value.exit_status == 1
    assert caught.value.code == "E_BUDGET"
    assert "`hypsc check --help`" in caught.value.hint
    return caught.value.message


def test_everything_that_can_be_said_is_read() -> None:
    rule = decode_budget(WHOLE, folder=Path("ci")).rule("small.onnx")
    assert rule.options == CompileOptions(
        memory_bytes=256_000_000,
        max_params=30_000_000,
        cut=("pooling", "bottleneck"),
        optimize="native",
        quantize="int8",
        calibration="ci/samples.npz",
        inputs="ci/x.npz",
        input={"image": (1, 3, 224, 224), "mask": (1, 7)},
        timeout_s=120.0,
        max_tensor_bytes=4 * 2**30,
    )
    assert rule.limits == {
        "partition_bytes": 64_000_000,
        "partition_params": 10_000_000,
        "peak_memory": 100_000_000,
        "partitions": 12,
        "border_bytes": 2**20,
        "difference": 1e-5,
        "conversion_difference": 1e-4,
    }
    assert rule.growth == {"peak_memory": 0.05, "partitions": 0.0}


def test_patterns_apply_in_their_order() -> None:
    budget = decode_budget(WHOLE)
    one, two = budget.rule("big/one.onnx"), budget.rule("big/two.onnx")
    assert one.options.memory_bytes == two.options.memory_bytes == 10**9
    assert one.options.cut == ("pooling", "bottleneck")
    assert one.limits["peak_memory"] == 10**9
    assert one.limits["partition_bytes"] == 64_000_000
    assert (one.growth["peak_memory"], two.growth["peak_memory"]) == (0.125, 0.05)
    assert one.patterns == ("big/*.onnx", "big/one.onnx")
    assert budget.unused(["big/two.onnx"]) == ["big/one.onnx"]


def test_a_name_with_brackets_is_itself() -> None:
    budget = decode_budget('[models."a[1].onnx".limits]\npartitions = 3')
    assert budget.rule("a[1].onnx").limits == {"partitions": 3}
    assert budget.rule("a2.onnx").limits == {}


def test_names_are_relative_to_the_budget() -> None:
    budget = Budget(folder=Path("models"))
    assert budget.name_of("models/a/b.onnx", Path("models/a/b.onnx")) == "a/b.onnx"
    assert budget.name_of("other/b.onnx", Path("other/b.onnx")) == "../other/b.onnx"
    assert budget.name_of("zoo:digits", None) == "zoo:digits"


def test_a_name_is_the_same_however_the_path_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    from_above = Budget(folder=Path())
    typed = [Path("models/b.onnx"), tmp_path / "real/models/b.onnx", tmp_path / "link/models/b.onnx"]
    assert {from_above.name_of(str(path), path) for path in typed} == {"models/b.onnx"}
    monkeypatch.chdir(tmp_path / "real" / "models")
    assert Budget(folder=Path("..")).name_of("b.onnx", Path("b.onnx")) == "models/b.onnx"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limit]\npeak_memory = 1", "unknown key `limit`: did you mean `limits`?"),
        ("[limits]\npeak_mem = 1", "unknown key `limits.peak_mem`: did you mean `peak_memory`?"),
        ("[defaults]\nmemroy = 1", "unknown key `defaults.memroy`: did you mean `memory`?"),
        ('[models."a*"]\nmax_parms = 1', 'unknown key `models."a*".max_parms`: did you mean `max_params`?'),
        ("[growth]\nqqq = 1", "unknown key `growth.qqq`: it may hold partition_bytes"),
        ("[growth]\ndifference = '5%'", "unknown key `growth.difference`"),
        ('[models.a.limits]\nlatncy = "1s"', 'unknown key `models."a".limits.latncy`: did you mean `latency`?'),
        ("[limits]\npeak_memory = \nx = 1", "line 2"),
        ("[limits]\npeak_memory = true", "`limits.peak_memory` is true or false and is to be a number or text"),
        ("[limits]\npeak_memory = '5 parsecs'", "`limits.peak_memory`: `5 parsecs` is no size; write it like 256MB"),
        ("[limits]\npeak_memory = '0MB'", "is not above zero"),
        ("[limits]\ndifference = 'small'", "`limits.difference`: `small` is no number"),
        ("[limits]\ndifference = -1", "is no number from zero on"),
        ("[limits]\ndifference = nan", "is no number from zero on"),
        ("[growth]\npeak_memory = '5'", '`growth.peak_memory`: `5` is no share; write it like "5%"'),
        ("[growth]\npeak_memory = 5", '`growth.peak_memory`: `5` is no share; write it like "5%"'),
        ("[defaults]\npartitions = '3'", "`defaults.partitions` is text and is to be a number"),
        ("[growth]\npeak_memory = '-5%'", "is no number from zero on"),
        ("[defaults]\noptimize = 'best'", "`defaults.optimize`: `best` is none of none, portable, native"),
        ("[defaults]\npartitions = 0", "`0` is not above zero"),
        ("[defaults]\ninput = {x = '1xx2'}", "`1xx2` is no shape for `x`; write it like 1x3x224x224"),
        ("[defaults]\ninput = {x = [0]}", "is no shape for `x`"),
        ("[defaults]\nmemory = 'x'\nmax_params = 'y'", "(and 1 more)"),
        ("models = 3", "`models` is a number and is to be a table"),
    ],
)
def test_what_means_nothing_is_refused(text: str, said: str) -> None:
    assert said in refused(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[defaults]\ncluster = 'c.toml'\nmemory = '1GB'", "`memory` cannot be given with `cluster`"),
        ("[defaults]\nprofile = 'p.json'", "`profile` is about a cluster"),
        ("[limits]\nlatency = '40ms'", "`limits.latency` needs a `cluster`"),
        ("[growth]\nlatency = '5%'", "`growth.latency` needs a `cluster`"),
        ("[defaults]\ncluster = 'c.toml'\nquantize = 'int8'", "`quantize` cannot be given with `cluster`"),
        ("[defaults]\ncalibration = 'x.npz'", "`calibration` is about `quantize`"),
    ],
)
def test_contradictions_are_refused_for_the_model(text: str, said: str) -> None:
    budget = decode_budget(text)
    with pytest.raises(HypsError, match=r"for `m\.onnx`") as caught:
        budget.rule("m.onnx")
    assert said in caught.value.message


def test_a_budget_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(HypsError, match="does not exist") as caught:
        read_budget(tmp_path / "budget.toml")
    assert caught.value.code == "E_NOT_FOUND"
    with pytest.raises(HypsError, match="cannot be read"):
        read_budget(tmp_path)


def test_the_file_knows_every_limit_and_every_option() -> None:
    assert set(module._Limits.__struct_fields__) == set(LIMITS)
    assert set(module._Growth.__struct_fields__) == set(GROWING)
    assert set(module._READERS) == set(module._Options.__struct_fields__)
    fields = {module._FIELD_OF.get(name, name) for name in module._READERS}
    assert fields == set(CompileOptions.__struct_fields__)


def test_the_budget_that_the_documentation_shows_fits_the_models_that_it_checks() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checking.md").read_text()
    budget = decode_budget(text.partition("```toml\n")[2].partition("```")[0])
    assert "$ hypsc check models/ --budget budget.toml" in text
    path = Path("models/vision/net.onnx")
    names = [budget.name_of(path.as_posix(), path), "zoo:digits"]
    assert budget.unused(names) == []
    assert budget.rule(names[0]).options.cut == ("pooling",)


@pytest.mark.parametrize("nothing", ['"0B"', '"0"', "0", '"0.0 MiB"'])
def test_nothing_may_cross_borders(nothing: str) -> None:
    assert decode_budget(f"[limits]\nborder_bytes = {nothing}").rule("m.onnx").limits == {"border_bytes": 0}


@pytest.mark.parametrize("wrong", ['border_bytes = "0 cats"', 'partition_bytes = "0B"', 'border_bytes = "-1"'])
def test_other_limits_are_above_nothing(wrong: str) -> None:
    with pytest.raises(HypsError, match="is no budget"):
        decode_budget(f"[limits]\n{wrong}")
