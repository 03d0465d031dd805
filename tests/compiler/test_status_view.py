"""A report as lines: they fit, they tell what matters, and strangers' names do no harm."""

import msgspec
import pytest

from hyps.formats.status import CourseStatus, NodeStatus, Report, RequestsStatus
from hyps_compiler.status_view import show_report
from status_fixtures import manager, nested, node, partition

ADDRESS = "tcp://127.0.0.1:5757"


def texts(report: Report, rows: int | None = None, width: int = 80) -> list[str]:
    return [line.text for line in show_report(report, ADDRESS, width=width, rows=rows)]


@pytest.mark.parametrize("devices", [0, 1, 3, 20, 50])
@pytest.mark.parametrize("rows", [None, 5, 10, 24, 40, 120])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_line_fits(devices: int, rows: int | None, width: int) -> None:
    shown = texts(manager(devices), rows, width)
    assert max(map(len, shown)) <= width
    assert rows is None or len(shown) <= rows
    assert shown[0].startswith("manager at tcp://127.0.0.1:5757")


def test_without_a_limit_everything_is_told() -> None:
    shown = "\n".join(texts(manager(50)))
    for number in range(1, 51):
        assert f"\npi-{number} " in shown
        assert f"\nblock{number} " in shown
    assert "pi-49 > pi-50" in shown


def test_a_small_terminal_shows_twenty_devices_several_in_a_line() -> None:
    shown = "\n".join(texts(manager(20), rows=24))
    assert all(f"pi-{number} " in shown for number in range(1, 21))
    assert "more devices" not in shown


def test_what_does_not_fit_is_counted_and_what_is_wrong_comes_first() -> None:
    report = manager(50)
    nodes = (*report.nodes[:48], node(49, silent_s=7.0), node(50, state="gone"))
    shown = texts(msgspec.structs.replace(report, nodes=nodes), rows=24)
    first = next(line for line in shown if line.startswith("pi-"))
    assert first.startswith("pi-49      silent 7 s     pi-50      gone")
    left = 50 - sum(line.count("pi-") for line in shown if line.startswith("pi-"))
    assert f"and {left} more devices" in shown


def test_the_snapshot_of_a_small_cluster() -> None:
    assert texts(manager(2)) == [
        "manager at tcp://127.0.0.1:5757                                    up 2 h 13 min",
        "vgg16: inferring, variant default, placed by pipeline-dp",
        "",
        "requests  queued 3 of 64 #-------   running 4 of 8 ####----   4 clients",
        "          12.3 k done, 3 failed, 1 cancelled, 12 refused, 2 begun anew",
        "failures  2 E_DEADLINE, 1 E_EXECUTION",
        "hub       queue 1.80 MB of 256 MB #-------   held 3.00 MB",
        "            measured   predicted   ratio",
        "rate          12.3/s      14.1/s    0.87",
        "latency       312 ms      280 ms    1.11   p95 406 ms, p99 562 ms",
        "",
        "device  state    busy           memory      items/s  waits  now",
        "pi-1    serving  #-------  13%  232 MB 23%     12.3      1  block1 12.3 ms",
        "pi-2    serving  ##------  26%  233 MB 23%     12.3      2",
        "",
        "partition  state      where    runs  waited  measured      p95  predicted  ratio",
        "block1     inferring  pi-1   1.20 k    2 ms     38 ms  49.4 ms      35 ms   1.09",
        "block2     loaded     pi-2   1.20 k    2 ms     38 ms  49.4 ms      35 ms   1.09",
        "",
        "link         bandwidth  latency  sends     sent",
        "pi-1 > pi-2  11.7 MB/s   1.2 ms  0 B/s  9.00 GB",
    ]


def test_groups_are_a_tree() -> None:
    assert [line.split("serving")[0].rstrip() for line in texts(nested()) if "serving" in line] == [
        "room-4",
        "├ room-1",
        "│ ├ pi-1",
        "│ └ room-2",
        "│   ├ pi-1",
        "│   └ pi-2",
        "└ pi-3",
        "pi-9",
    ]


def test_a_manager_without_anything_says_so() -> None:
    shown = texts(Report(role="manager", state="partitioned", notes=("the plan waits for `pi-1` and `pi-2`",)))
    assert "no device has joined yet" in shown
    assert "note: the plan waits for `pi-1` and `pi-2`" in shown
    assert any(line.split() == ["latency", "-", "-", "-"] for line in shown)


def test_replicas_and_courses_are_told() -> None:
    courses = (
        CourseStatus(id=1, state="retiring", variant="default", devices=("pi-1",), requests=2, done=90),
        CourseStatus(id=2, state="ready", devices=("pi-1", "pi-2"), requests=3, done=7),
    )
    report = msgspec.structs.replace(manager(1), courses=courses, partitions=(partition(1, "pi-1", "pi-2", "pi-3"),))
    shown = "\n".join(texts(report))
    assert "pi-1 +2" in shown
    assert "     1  retiring  default  pi-1              2    90" in shown


def test_why_a_device_does_not_compute_is_told() -> None:
    troubled = (
        msgspec.structs.replace(node(1), refused=(("block1", "needs 2 GB"),)),
        msgspec.structs.replace(node(3), unreachable=("pi-7",)),
        msgspec.structs.replace(node(4, state="loading"), running=()),
    )
    lines = show_report(msgspec.structs.replace(manager(0), nodes=troubled), ADDRESS)
    assert "note: pi-1 cannot load block1: needs 2 GB" in [line.text for line in lines]
    told = {line.text.split()[0]: (line.text.split("  ")[-1], line.tone) for line in lines if line.text}
    assert told["pi-1"] == ("cannot load block1", "bad")
    assert told["pi-3"] == ("cannot reach pi-7", "warn")
    assert told["pi-4"] == ("1 to load", "warn")


def test_a_device_that_has_nothing_to_run_is_idle() -> None:
    unused = msgspec.structs.replace(node(2, state="joining"), partitions=(), running=())
    lines = show_report(msgspec.structs.replace(manager(0), nodes=(unused,)), ADDRESS)
    (told,) = [line for line in lines if line.text.startswith("pi-2")]
    assert (told.text.split()[1], told.tone) == ("idle", "plain")


def test_names_from_strangers_cannot_draw_on_the_terminal() -> None:
    evil = "\x1b[2Jname\r\nx\u202e"
    report = Report(
        role=evil,
        state=evil,
        device=evil,
        model=evil,
        strategy=evil,
        variant=evil,
        nodes=(NodeStatus(device=evil, state=evil, unreachable=(evil,)), NodeStatus(device="a", state="gone")),
        partitions=(partition(1, evil),),
        requests=RequestsStatus(failures={evil: 1}),
        notes=(evil,),
    )
    assert all(line.isprintable() for line in texts(report))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (61, "1 min 1 s"), (7985, "2 h 13 min"), (90000, "1 d 1 h")]
)
def test_how_long_it_runs_is_told_in_two_units(seconds: float, shown: str) -> None:
    assert texts(Report(role="manager", state="inferring", uptime_s=seconds))[0].endswith(f"up {shown}")
