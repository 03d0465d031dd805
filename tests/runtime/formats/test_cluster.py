import pytest

from hyps.errors import ClusterError
from hyps.formats.cluster import decode_cluster

PAIR = """
[[devices]]
name = "camera"
{camera}
[[devices]]
name = "server"
tier = "edge"
{server}
[[links]]
between = ["camera", "server"]
up = "57Mbit/s"
{link}
{more}
"""


def pair(**parts: str) -> str:
    return PAIR.format(**{"camera": "", "server": "", "link": "", "more": ""} | parts)


def test_what_is_left_out_has_defaults() -> None:
    cluster = decode_cluster(pair())
    camera, server = cluster.devices
    assert cluster.entry == "camera"
    assert (camera.tier, camera.speed, camera.memory_bytes, camera.is_trusted) == ("device", 1.0, None, True)
    assert server.tier == "edge"
    (link,) = cluster.links
    assert link.up_bytes_per_s == link.down_bytes_per_s == 7_125_000
    assert (link.latency_s, link.message_s, link.max_bytes) == (0.0, 0.0, None)


def test_quantities_are_written_as_people_do() -> None:
    text = pair(
        camera='memory = "1GiB"\nspeed = 0.25\nload = 0.5\nactive_w = 6.4\nidle_w = 1.9\njoules_per_byte = 1e-7',
        server="trusted = false\nmax_share = 0.5",
        link='down = "7MB/s"\nlatency = "28ms"\nmessage = "0.2ms"\nserialize = 1e-9\nmax_bytes = "1MB"',
        more='[constraints]\ndeadline = "100ms"\nenergy = 3.5\nbytes = "2MB"\nprivate = true\n'
        'pins = {conv1 = "camera"}\nbans = {fc = "camera", fc2 = ["camera"]}',
    )
    cluster = decode_cluster(text)
    assert cluster.device("camera").memory_bytes == 2**30
    assert cluster.device("server").max_share == 0.5
    assert cluster.links[0].down_bytes_per_s == 7e6
    assert cluster.links[0].latency_s == pytest.approx(0.028)
    assert cluster.links[0].max_bytes == 10**6
    told = cluster.constraints
    assert (told.deadline_s, told.joules, told.wire_bytes, told.is_private) == (0.1, 3.5, 2_000_000, True)
    assert told.bans == {"fc": ("camera",), "fc2": ("camera",)}


def test_defaults_join_devices_that_no_link_joins() -> None:
    text = 'defaults = {up = "1Gbit/s", latency = "1ms", memory = "512MB"}\n' + "".join(
        f'[[devices]]\nname = "d{i}"\n' for i in range(3)
    )
    cluster = decode_cluster(text + '[[links]]\nbetween = ["d2", "d0"]\nup = "10Mbit/s"\n')
    rates = {frozenset(link.between): link.up_bytes_per_s for link in cluster.links}
    assert rates == {
        frozenset(("d0", "d1")): 125e6,
        frozenset(("d1", "d2")): 125e6,
        frozenset(("d0", "d2")): 1.25e6,
    }
    assert all(device.memory_bytes == 512_000_000 for device in cluster.devices)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no `[[devices]]`"),
        ("x = [", "is no cluster"),
        ("color = 1", "unknown key `color`"),
        (pair(camera="memroy = 3"), "unknown key `memroy`"),
        (pair(camera='memory = "3 apples"'), "`memory` of device `camera`: `3 apples` is no size"),
        (pair(camera="memory = -5"), "`memory` of device `camera`"),
        (pair(camera="speed = 0"), "speed 0, which is not above zero"),
        (pair(camera="speed = inf"), "speed inf"),
        (pair(camera='speed = 1\nprofile = "p.json"'), "both `speed` and `profile`"),
        (pair(camera='tier = "moon"'), "none of device, edge, cloud"),
        (pair(server="load = 1.0"), "load 1, which is not from 0 to below 1"),
        (pair(server="max_share = 0"), "max_share 0"),
        (pair(server="idle_w = 5"), "idle_w of 5 above its active_w of 0"),
        (pair(server="threads = 0"), "0 threads"),
        (pair(link='latency = "soon"'), "`soon` is no time"),
        (pair(link='down = "fast"'), "`fast` is no rate"),
        (pair(more='[[links]]\nbetween = ["server", "camera"]\nup = "1MB/s"'), "stands twice"),
        (pair(more='[[links]]\nbetween = ["server", "moon"]\nup = "1MB/s"'), "names `moon`, which is no device"),
        (pair(more='[[links]]\nbetween = ["server"]\nup = "1MB/s"'), "no `between` with the names of two devices"),
        (pair(more='[[links]]\nbetween = ["server", "server"]\nup = "1MB/s"'), "joins a device with itself"),
        (pair(more='[[devices]]\nname = "alone"'), "no link leads to device `alone` from `camera`"),
        (pair(more='[[devices]]\nname = "camera"'), "device `camera` stands twice"),
        ('entry = "x"' + pair(), "`entry` is `x`, which is no device"),
        (pair(more='[constraints]\npins = {conv = "moon"}'), "pinned to `moon`"),
        (pair(more='[constraints]\nbans = {conv = "moon"}'), "banned from `moon`"),
        (pair(more="[constraints]\nenergy = -1.0"), "the constraint `energy` is -1"),
        (pair(camera="trusted = false", more="[constraints]\nprivate = true"), "the entry `camera` is not trusted"),
        ("arrival = nan" + pair(), "`arrival` is nan"),
    ],
)
def test_what_is_wrong_is_told_by_its_name(text: str, said: str) -> None:
    with pytest.raises(ClusterError) as refused:
        decode_cluster(text, "lab.toml")
    assert said in refused.value.message
    assert "`lab.toml`" in refused.value.message


def test_all_problems_are_counted() -> None:
    with pytest.raises(ClusterError, match=r"\(and 2 more\)"):
        decode_cluster(pair(camera="speed = -1\nthreads = 0", server="load = 2"))
