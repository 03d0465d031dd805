"""`hypsc report` on the command line: what it writes, and what it refuses."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import hyps_compiler
from hyps_compiler.cli import main
from plan_fixtures import write_plan_file
from report_fixtures import chain, small_model, write_cluster, write_profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its profile, a cluster, and plans for one device and for three."""
    made = tmp_path_factory.mktemp("report")
    model = small_model(made / "small.onnx")
    profile, cluster = write_profile(made / "profile.json", model), write_cluster(made / "cluster.toml")
    hyps_compiler.compile(model, made / "local", cut="all", verify=False)
    hyps_compiler.compile(model, made / "spread", cluster=cluster, profile=profile, verify=False)
    return made


def call(folder: Path, plan: str, output: Path, *more: str) -> Result:
    words = [word.replace("DIR", str(folder)) for word in more]
    return CliRunner().invoke(main, ["report", str(folder / plan), "-o", str(output), *words])


def test_a_page_is_written_and_the_same_files_give_the_same_page(folder: Path, tmp_path: Path) -> None:
    options = ("--model", "DIR/small.onnx", "--profile", "DIR/profile.json", "--cluster", "DIR/cluster.toml")
    pages = []
    for name in ("one.html", "two.html"):
        result = call(folder, "spread", tmp_path / name, *options)
        assert result.exit_code == 0, result.stderr
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert {path.name for path in tmp_path.iterdir()} == {"one.html", "two.html"}
    for section in (b'"splits":{', b'"load_map":{', b'"schedule":{', b'"layers":{', b'"missing":{}'):
        assert section in pages[0]


def test_a_request_is_run_on_demand(folder: Path, tmp_path: Path) -> None:
    result = call(folder, "local", tmp_path / "page.html", "--run")
    assert result.exit_code == 0, result.stderr
    assert b"as it ran on this machine" in (tmp_path / "page.html").read_bytes()


def test_a_cluster_that_cannot_hold_the_model_leaves_the_rest_of_the_page(folder: Path, tmp_path: Path) -> None:
    text = (folder / "cluster.toml").read_text().replace('name = "', 'memory = "54MB"\nname = "')
    (tmp_path / "small.toml").write_text(text)
    options = ("--model", "DIR/small.onnx", "--profile", "DIR/profile.json", "--cluster", str(tmp_path / "small.toml"))
    result = call(folder, "local", tmp_path / "page.html", *options)
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "page.html").read_text()
    assert '"splits":null' in page
    assert '"splits":"Not possible: ' in page
    assert '"layers":{"rows":' in page


def test_an_existing_page_is_replaced_by_force_only(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    result = call(folder, "local", page)
    assert (result.exit_code, "E_EXISTS" in result.stderr) == (1, True)
    assert page.read_text() == "mine"
    assert call(folder, "local", page, "--force").exit_code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_another_model_is_refused_and_nothing_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    write_plan_file(tmp_path / "plan", chain(2))
    result = call(tmp_path, "plan", tmp_path / "page.html", "--model", str(folder / "small.onnx"))
    assert (result.exit_code, "E_OTHER_MODEL" in result.stderr) == (1, True)
    assert not (tmp_path / "page.html").exists()


def test_a_plan_for_several_devices_is_not_run_here(folder: Path, tmp_path: Path) -> None:
    result = call(folder, "spread", tmp_path / "page.html", "--run")
    assert result.exit_code == 2
    assert "--run" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("report", "plan", "-o", "plan/plan.json", "--force"),
        ("report", "plan", "-o", "m.onnx", "--model", "m.onnx", "--force"),
        ("report", "plan", "-o", "cluster.toml", "--cluster", "cluster.toml", "--force"),
        ("annotate", "m.onnx", "--plan", "plan", "-o", "m.onnx", "--force"),
        ("annotate", "m.onnx", "--plan", "plan", "-o", "plan/plan.json", "--force"),
        ("compile", "plan/own.onnx", "-o", "plan", "--force"),
        ("compile", "m.onnx", "-o", "plan", "--inputs", "plan/x.npz", "--force"),
        ("profile", "m.onnx", "-o", "m.onnx", "--force"),
    ],
)
def test_no_command_replaces_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_model(Path("m.onnx"))
    write_cluster(Path("cluster.toml"))
    hyps_compiler.compile("m.onnx", "plan", verify=False)
    Path("plan/own.onnx").write_bytes(Path("m.onnx").read_bytes())
    Path("plan/x.npz").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, list(args))
    assert (result.exit_code, "which is read and would be lost [E_EXISTS]" in result.stderr) == (1, True), result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
