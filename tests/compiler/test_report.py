"""What a report is made from, and the file that it becomes."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hyps.formats.plan import OutputLoss, Plan, Quantization, Variant
from hyps_compiler.partition import BASE_BYTES
from hyps_compiler.report.document import Report
from hyps_compiler.report.gather import gather
from hyps_compiler.report.layers import base_name
from hyps_compiler.report.load_map import assignment_of, load_map_of
from hyps_compiler.report.memory import memory_of
from hyps_compiler.report.page import SCRIPTS, STYLES, page_of
from hyps_compiler.report.schedule import local_schedule
from hyps_compiler.report.sources import Sources, site_of
from hyps_compiler.report.splits import crossings, splits_of
from hyps_passes.estimate import estimate
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.problem import Channel, Flow, Machine, Problem, Task
from hyps_passes.strategies.consecutive import measure_cuts
from profile_fixtures import layer, profile
from report_fixtures import HOSTILE, chain, write_cluster


def report_of(plan: Plan) -> Report:
    return gather(Sources(plan), lambda _: None)


def embedded(page: bytes) -> dict[str, Any]:
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


def problem(seconds: float = 0.1, arrival_rps: float = 0.0) -> Problem:
    """Five layers on a slow device and a fast server; what crosses shrinks towards the end."""
    sizes = [8000, 4000, 1000, 500, 40]
    flows = [Flow("t0", 6000, -1, (0,))]
    flows += [Flow(f"t{i + 1}", size, i, (i + 1,) if i < 4 else (), i == 4) for i, size in enumerate(sizes)]
    return Problem(
        tasks=tuple(Task(f"l{i}") for i in range(5)),
        flows=tuple(flows),
        machines=(Machine("camera"), Machine("server")),
        channels=(Channel(0, 1, 1e-5, 0.01), Channel(1, 0, 1e-5, 0.01)),
        seconds=((seconds, seconds / 10),) * 5,
        export_s=((0.0, 0.0),) * 6,
        import_s=((0.0, 0.0),) * 6,
        arrival_rps=arrival_rps,
    )


def spread(plan: Plan, first: int) -> Plan:
    """Return a plan of five partitions, those from `first` on at the server, whose layers are the problem's."""
    parts = tuple(msgspec.structs.replace(part, layers=(f"l{i}",)) for i, part in enumerate(plan.partitions))
    placement = {part.id: "camera" if i < first else "server" for i, part in enumerate(parts)}
    return msgspec.structs.replace(
        plan, partitions=parts, variants=(Variant(name="best", placement=placement),), entry="camera"
    )


# The file.


def test_a_hostile_name_cannot_leave_the_data() -> None:
    page = page_of(report_of(chain(3, hostile=HOSTILE)))
    assert page.count(b"</script>") == 2
    assert b"<img" not in page
    assert embedded(page)["graph"]["nodes"][1]["layers"][0] == f"blocks.0.conv{HOSTILE}"


def test_the_policy_allows_the_pages_own_code_alone() -> None:
    page = page_of(report_of(chain(2))).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    style, script = re.search(r"<style>(.*?)</style>", page, re.DOTALL), page.rpartition("<script>")[2]
    assert policy is not None
    assert style is not None
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    for kind, text in (("style", style[1]), ("script", script.partition("</script>")[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]


def test_the_page_names_no_address() -> None:
    page = page_of(report_of(chain(2))).decode()
    assert set(re.findall(r"(?:https?:)?//[a-z][^\s'\"]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"\b(src|url\(h|@import|innerHTML|eval|localStorage)",
        page.replace("script-src", "").replace("style-src", "").replace("default-src", "").replace("img-src", ""),
    )


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert page_of(report_of(chain(30, shards=3))) == page_of(report_of(chain(30, shards=3)))


def test_a_thousand_partitions_stay_below_two_megabytes() -> None:
    page = page_of(report_of(chain(1000, memory_bytes=BASE_BYTES + 100_000)))
    assert len(page) < 2_000_000
    assert len(embedded(page)["graph"]["nodes"]) == 1002


def test_every_asset_is_read() -> None:
    folder = Path(__file__).parents[2] / "compiler" / "hyps_compiler" / "report" / "assets"
    assert {path.name for path in folder.iterdir()} == {*STYLES, *SCRIPTS}


# What is missing is said.


def test_missing_sections_name_the_options_that_bring_them() -> None:
    missing = report_of(chain(3, seconds=None)).missing
    assert "--model" in missing["layers"]
    assert all(option in missing["splits"] for option in ("--model", "--cluster", "--profile"))
    assert "--run" in missing["schedule"]
    assert "--cluster" in missing["load_map"]
    assert "--no-map" in gather(Sources(chain(2)), lambda _: None, has_map=False).missing["load_map"]


def test_unknown_sizes_are_said() -> None:
    plan = chain(3)
    tensors = {**plan.tensors, "t0": msgspec.structs.replace(plan.tensors["t0"], nbytes=None)}
    report = report_of(msgspec.structs.replace(plan, tensors=tensors))
    assert report.memory is None
    assert "--input" in report.missing["memory"]


# Memory and the local schedule.


def test_without_a_budget_all_partitions_stay() -> None:
    memory = memory_of(chain(4), None, {}, None)
    assert memory is not None
    (device,) = memory.devices
    assert (device.kept, device.swapped, memory.unit) == (4, 0, "steps")
    assert {moment.what for moment in device.moments} == {"run"}
    assert device.kept_bytes == sum(part.weight_bytes for part in chain(4).partitions)


def test_under_a_budget_partitions_pass_and_the_peak_stays_within() -> None:
    plan = chain(8, memory_bytes=BASE_BYTES + 60_000)
    times = plan.variants[0].prediction.partition_s
    memory = memory_of(plan, None, times, None)
    assert memory is not None
    (device,) = memory.devices
    assert device.swapped > 0
    assert device.kept + device.swapped == 8
    assert device.peak_bytes <= BASE_BYTES + 60_000
    held = [device.base_bytes + device.kept_bytes + m.weight_bytes + m.tensor_bytes for m in device.moments]
    assert max(held) == held[device.peak_at] == device.peak_bytes
    ends = [0.0, *(moment.end for moment in device.moments)]
    assert [moment.start for moment in device.moments] == ends[:-1]


def test_the_local_schedule_is_the_course_of_memory() -> None:
    plan = chain(8, memory_bytes=BASE_BYTES + 60_000)
    memory = memory_of(plan, None, plan.variants[0].prediction.partition_s, None)
    assert memory is not None
    schedule = local_schedule(memory.devices[0], is_measured=False)
    runs = [bar for bar in schedule.bars if bar.kind == "compute"]
    assert [bar.name for bar in runs] == [part.id for part in plan.partitions]
    assert sum(bar.end_s - bar.start_s for bar in schedule.bars) == pytest.approx(schedule.end_s)


# Split points.


@pytest.mark.parametrize("arrival_rps", [0.0, 1.0])
def test_every_split_takes_what_the_cost_model_says(arrival_rps: float) -> None:
    known = problem(arrival_rps=arrival_rps)
    (target,) = splits_of(spread(chain(5), 3), known).targets
    assert [split.position for split in target.splits] == [0, 1, 2, 3, 4, 5]
    assert target.splits[0].device_s == target.splits[-1].server_s == target.splits[-1].transfer_s == 0
    assert all((split.queue_s > 0) == (arrival_rps > 0) for split in target.splits)
    if not arrival_rps:
        scores = measure_cuts(known, OBJECTIVES["latency"], (0, 1)).two()
        told = [split.latency_s for split in target.splits[:-1]]
        assert told == pytest.approx(scores[:-1].tolist())


def test_the_least_and_the_chosen_split_are_marked() -> None:
    (target,) = splits_of(spread(chain(5), 3), problem()).targets
    assert target.chosen == (3,)
    assert target.splits[target.best].latency_s == min(split.latency_s for split in target.splits)


@pytest.mark.parametrize(("first", "found"), [(0, {0}), (3, {3}), (5, {5})])
def test_where_a_plan_goes_to_another_device(first: int, found: set[int]) -> None:
    assert crossings(spread(chain(5), first), problem()) == found


def test_a_split_that_breaks_a_limit_is_not_the_least() -> None:
    known = problem()
    machines = (known.machines[0], Machine("server", memory_bytes=1))
    limited = replace(known, machines=machines)
    assert splits_of(spread(chain(5), 5), limited).targets[0].chosen == ()
    (target,) = splits_of(spread(chain(5), 5), limited).targets
    assert target.best == len(target.splits) - 1
    assert "memory of server" in target.splits[0].broken


# Batch size and rate.


def test_at_a_low_rate_a_request_takes_what_it_takes_alone() -> None:
    plan, known = spread(chain(5), 3), problem()
    found = load_map_of(plan, {1: known}, lambda _: None)
    assert found is not None
    alone = estimate(known, assignment_of(plan, known)).latency_s
    assert found.cells[0][0].p95_s == pytest.approx(alone, rel=0.6)
    assert found.cells[0][0].p95_s >= alone * (1 - 1e-9)
    assert not found.cells[0][0].is_over
    assert found.cells[-1][0].is_over


def test_latency_grows_with_the_rate_and_throughput_is_bounded() -> None:
    plan, known = spread(chain(5), 3), problem()
    found = load_map_of(plan, {1: known}, lambda _: None)
    assert found is not None
    latencies = [row[0].p95_s for row in found.cells]
    assert latencies == sorted(latencies)
    assert max(row[0].throughput_rps for row in found.cells) < max(found.rates)
    assert load_map_of(plan, {1: known}, lambda _: None) == found


def test_a_batch_waits_until_it_is_full() -> None:
    plan, known = spread(chain(5), 3), problem()
    found = load_map_of(plan, {1: known, 4: known}, lambda _: None)
    assert found is not None
    assert found.cells[0][1].p95_s > 2 / found.rates[0]
    assert not math.isclose(found.cells[0][1].p95_s, found.cells[0][0].p95_s)


# Layers and clusters.


def test_parts_count_with_their_layer() -> None:
    assert base_name("fc1[2/4]", {"fc1"}) == "fc1"
    assert base_name("fc1", {"fc1"}) == "fc1"
    assert base_name("other", {"fc1"}) is None


def test_a_device_takes_the_profile_of_its_name_else_the_first_at_its_speed(tmp_path: Path) -> None:
    first = profile([layer("a", {1: 1.0})], [], {1: 0.001})
    named = msgspec.structs.replace(profile([layer("a", {1: 3.0})], [], {1: 0.001}), device="cloud")
    site = site_of(write_cluster(tmp_path / "c.toml"), (first, named))
    took = {name: told.layers[0].samples[1].median_s for name, told in site.profiles.items()}
    assert took == {"camera": 4.0, "edge": 1.0, "cloud": 3.0}


def test_the_summary_tells_limits_and_what_is_lossy() -> None:
    plan = msgspec.structs.replace(chain(3, memory_bytes=64_000_000), lossy=("int8 transfer",))
    facts = {fact.label: fact for fact in report_of(plan).facts}
    assert facts["Limits"].value == "64.0 MB per process"
    assert "int8 transfer" in facts["Answers"].value
    assert facts["Digest"].value == "ab" * 32


def test_the_summary_tells_what_quantization_loses() -> None:
    loss = OutputLoss(output="logits", largest=0.5, relative=0.012, mean=0.001, same_top1=0.97)
    told = Quantization(
        kind="int8",
        methods=("static",),
        weight_bytes=(4_000_000, 1_000_000),
        measured_requests=8,
        measured_on="held-out",
        losses=(loss,),
    )
    facts = {f.label: f for f in report_of(msgspec.structs.replace(chain(2), quantization=told)).facts}
    assert facts["Quantized"].value == "int8, 4.00 MB to 1.00 MB of weights"
    assert "0.012" in facts["Quantized"].note
    assert "97%" in facts["Quantized"].note
