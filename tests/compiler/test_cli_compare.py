"""`hypsc compare` as a command: a real profile, a cluster file, the table and the JSON."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyps.formats.profiles import encode_profile
from hyps_compiler.cli import main
from hyps_compiler.cli_options import OBJECTIVE_NAMES
from hyps_compiler.profiling import ProfileOptions, profile_model
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.strategies import STRATEGIES

CLUSTER = """
entry = "camera"
[[devices]]
name = "camera"
speed = 0.05
[[devices]]
name = "server"
tier = "edge"
[[links]]
between = ["camera", "server"]
up = "57Mbit/s"
latency = "0.2ms"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a cluster file and a profile of the small trained network, measured here."""
    folder = tmp_path_factory.mktemp("compare")
    profile, cluster = folder / "here.json", folder / "cluster.toml"
    profile.write_bytes(encode_profile(profile_model("zoo:digits", ProfileOptions(repeats=2))))
    cluster.write_text(CLUSTER)
    return cluster, profile


def run(files: tuple[Path, Path], *options: str) -> str:
    cluster, profile = files
    words = ["compare", "zoo:digits", "--cluster", str(cluster), "--profile", str(profile), *options]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_objectives_are_those_of_the_table() -> None:
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES


def test_the_table_has_all_strategies_in_80_columns(files: tuple[Path, Path]) -> None:
    lines = run(files).splitlines()
    assert max(map(len, lines)) <= 80
    named = {word for line in lines for word in line.split()[:2]}
    assert set(STRATEGIES) <= named
    assert any("all pipelines, which is proven" in " ".join(lines[i : i + 2]) for i in range(len(lines)))


@pytest.mark.parametrize("objective", ["throughput", "memory"])
def test_json_is_what_the_contract_says(files: tuple[Path, Path], objective: str) -> None:
    value = json.loads(run(files, "--objective", objective, "--json"))
    rows = {row["strategy"]: row for row in value["strategies"]}
    assert set(rows) == set(STRATEGIES)
    assert rows["local"]["cut"] == []
    assert len(rows["remote"]["cut"]) == 1
    assert rows["exact"]["gap"] == 0
    assert all(row["gap"] is None or row["gap"] >= 0 or row["strategy"] == "coedge" for row in rows.values())
