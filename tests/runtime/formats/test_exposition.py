"""Metrics as Prometheus reads them, against a strict parser."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exposition_parser import parse
from hyps.formats.exposition import exposition
from hyps.formats.status import CourseStatus, Durations, NodeStatus, Report, RequestsStatus
from status_fixtures import manager, nested, node, partition


@pytest.mark.parametrize("report", [manager(0), manager(1), manager(50), nested()], ids=["0", "1", "50", "nested"])
def test_what_is_written_is_what_prometheus_allows(report: Report) -> None:
    assert parse(exposition(report))["hyps_uptime_seconds"].value() == report.uptime_s


def test_the_figures_are_the_reports() -> None:
    metrics = parse(exposition(manager(3)))
    assert metrics["hyps_info"].value(
        role="manager", device="", model="vgg16", strategy="pipeline-dp", variant="default", version="hyps 0.1.0"
    )
    assert metrics["hyps_requests_done_total"].value() == 12_330
    assert metrics["hyps_requests_failures_total"].value(code="E_DEADLINE") == 2
    assert metrics["hyps_request_duration_seconds"].value("_count") == 12_330
    assert metrics["hyps_request_duration_seconds"].value("_bucket", le="0.25") == 0
    assert metrics["hyps_request_duration_seconds"].value("_bucket", le="0.5") == 12_330
    assert metrics["hyps_node_resident_bytes"].value(device="pi-2", group="") == 233_000_000
    assert metrics["hyps_partition_run_recent_seconds"].value(partition="block3", quantile="0.5") == 0.038
    assert metrics["hyps_link_bytes_per_second"].value(source="pi-1", target="pi-2") == 11.7e6


def test_devices_of_groups_are_told_with_their_groups() -> None:
    metrics = parse(exposition(nested()))
    groups = {dict(labels)["group"] for _, labels in metrics["hyps_node_waiting"].samples}
    assert groups == {"", "room-4", "room-4/room-1", "room-4/room-1/room-2"}


def test_what_is_unknown_is_left_out() -> None:
    metrics = parse(exposition(Report(role="worker", state="serving", nodes=(NodeStatus(device="a", state="gone"),))))
    assert "hyps_node_memory_bytes" not in metrics
    assert "hyps_request_duration_seconds" not in metrics
    assert metrics["hyps_node_state"].value(device="a", group="", state="gone") == 1


def test_durations_that_were_not_counted_by_class_are_told_as_quantiles_alone() -> None:
    run = Durations(n=2, total_s=2.0, p50_s=1.0, p95_s=1.0, p99_s=1.0)
    told = msgspec.structs.replace(partition(1), run=run, waited=run)
    metrics = parse(exposition(Report(role="worker", state="serving", partitions=(told,))))
    assert "hyps_partition_run_seconds" not in metrics
    assert metrics["hyps_partition_run_recent_seconds"].value(partition="block1", quantile="0.5") == 1.0


@given(st.text(max_size=30), st.text(max_size=30), st.floats(min_value=0))
@example('a"b', "\\", 0.0)
@example("two\nlines", '\\"\\n', 1e300)
def test_any_name_and_figure_comes_through(name: str, code: str, seconds: float) -> None:
    report = Report(
        role="manager",
        state=code,
        device=name,
        uptime_s=seconds,
        nodes=(msgspec.structs.replace(node(1), device=name),),
        partitions=(partition(1, name),),
        courses=(CourseStatus(id=1, state=name),),
        requests=RequestsStatus(failures={code: 3}),
    )
    metrics = parse(exposition(report))
    assert metrics["hyps_requests_failures_total"].value(code=code) == 3
    assert metrics["hyps_node_waiting"].value(device=name, group="") == 1
    assert metrics["hyps_uptime_seconds"].value() == seconds


def test_two_devices_of_one_name_do_not_spoil_the_scrape() -> None:
    report = msgspec.structs.replace(manager(0), nodes=(node(1), node(1, state="gone")))
    assert parse(exposition(report))["hyps_node_waiting"].value(device="pi-1", group="") == 1
