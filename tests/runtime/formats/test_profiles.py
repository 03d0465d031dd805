from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from hyps.errors import ProfileError, UsageError
from hyps.formats.profiles import (
    LinkProfile,
    Profile,
    decode_profile,
    encode_profile,
    json_schema,
    profile_problems,
    scaled,
)
from profile_fixtures import border, layer, profile, sample

SCHEMA = Path(__file__).parents[3] / "docs" / "profile.schema.json"

LINK = LinkProfile(peer="tcp://pi:1", up_bytes_per_s=1e6, down_bytes_per_s=2e6, latency_s=0.01, message_s=1e-4, n=5)


@pytest.fixture
def measured() -> Profile:
    layers = [layer("a", {1: 0.2, 4: 0.5}), layer("b", {1: 0.1, 4: 0.4})]
    cut = border("a", ("x",), ("a",), {1: 0.02, 4: 0.04}, {1: 0.01, 4: 0.03}, head_s={1: sample(0.22)})
    return replace(profile(layers, [cut], {1: 0.001, 4: 0.001}), whole={1: sample(0.3), 4: sample(0.9)}, links=(LINK,))


def test_the_published_schema_is_the_one_that_decodes() -> None:
    assert json_schema() == SCHEMA.read_bytes(), "generate docs/profile.schema.json again, see CONTRIBUTING.md"


def test_a_profile_comes_back_as_it_was_written(measured: Profile) -> None:
    data = encode_profile(measured)

    assert decode_profile(data) == measured
    assert encode_profile(decode_profile(data)) == data


def test_unknown_fields_of_newer_writers_are_ignored(measured: Profile) -> None:
    value = msgspec.json.decode(encode_profile(measured))
    value["colour"] = "green"

    assert decode_profile(msgspec.json.encode(value)) == measured


def test_a_profile_from_the_future_is_refused_by_its_version(measured: Profile) -> None:
    with pytest.raises(ProfileError, match="version 99") as caught:
        decode_profile(encode_profile(replace(measured, version=99)))

    assert caught.value.code == "E_VERSION"
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"1" * 5000])
def test_what_is_no_profile_is_refused_with_one_sentence(data: bytes) -> None:
    with pytest.raises(ProfileError) as caught:
        decode_profile(data)

    assert "profile" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_key_that_stands_twice_is_named(measured: Profile) -> None:
    data = encode_profile(measured).replace(b'"device":', b'"device": "other",\n "device":', 1)

    with pytest.raises(ProfileError, match="key `device` twice"):
        decode_profile(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "hyps-plan"}, "is not `hyps-profile`"),
        ({"batches": ()}, "`batches` are not ascending"),
        ({"batches": (4, 1)}, "`batches` are not ascending"),
        ({"batches": (0, 1)}, "`batches` are not ascending"),
        ({"batches": (1, 2)}, "layer `a` has no samples for exactly the batches"),
        ({"scale": 0.0}, "`scale` 0 is not above zero"),
        ({"threads": 0}, "`threads` and `cores`"),
        ({"session_s": {1: -1.0, 4: 0.0}}, "`session_s` has -1, which is no time"),
        ({"layers": (layer("a", {1: 1.0, 4: 1.0}),) * 2}, "layer `a` stands twice"),
        ({"layers": (layer("a", {1: -2.0, 4: 1.0}),)}, "`a` has -2, which is no time"),
        ({"links": (replace(LINK, up_bytes_per_s=0.0),)}, "has a rate that is not above zero"),
        ({"links": (replace(LINK, latency_s=-0.5),)}, "`tcp://pi:1` has -0.5"),
    ],
)
def test_what_is_wrong_is_named(measured: Profile, changes: dict[str, Any], said: str) -> None:
    assert profile_problems(measured) == []
    wrong = replace(measured, **changes)

    assert any(said in problem for problem in profile_problems(wrong)), profile_problems(wrong)
    with pytest.raises(ProfileError, match="`profile` is wrong"):
        decode_profile(encode_profile(wrong))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"after": "c"}, "names `c`, which is no layer"),
        ({"producers": ("c",)}, "names `c`, which is no layer"),
        ({"tensors": ("x", "y")}, "more tensors than it has, or fewer"),
        ({"export_s": {1: 0.0}}, "no seconds for exactly the batches"),
    ],
)
def test_what_is_wrong_with_a_border_is_named(measured: Profile, changes: dict[str, Any], said: str) -> None:
    wrong = replace(measured, borders=(replace(measured.borders[0], **changes),))

    assert any(said in problem for problem in profile_problems(wrong)), profile_problems(wrong)


def test_a_slower_device_takes_longer_everywhere(measured: Profile) -> None:
    slow = scaled(measured, 0.25, "slow")

    assert (slow.device, slow.scale, slow.scaled_from) == ("slow", 0.25, measured.device)
    assert slow.layers[0].samples[4].median_s == pytest.approx(2.0)
    assert slow.borders[0].export_s == pytest.approx({1: 0.08, 4: 0.16})
    assert slow.borders[0].import_s == pytest.approx({1: 0.04, 4: 0.12})
    assert slow.borders[0].head_s[1].p95_s == pytest.approx(4 * measured.borders[0].head_s[1].p95_s)
    assert slow.whole is not None
    assert slow.whole[1].median_s == pytest.approx(1.2)
    assert slow.session_s == pytest.approx({1: 0.004, 4: 0.004})
    assert slow.time_model.kinds[""].fixed_s == pytest.approx(4 * measured.time_model.kinds[""].fixed_s)
    assert slow.time_model.export_s_per_byte == pytest.approx(4 * measured.time_model.export_s_per_byte)
    assert (slow.links, slow.peak_memory_bytes) == ((), None)
    assert profile_problems(slow) == []


def test_scaling_twice_tells_the_device_that_was_measured(measured: Profile) -> None:
    twice = scaled(scaled(measured, 0.5, "slow"), 0.5, "slower")

    assert (twice.scale, twice.scaled_from) == (0.25, measured.device)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(measured: Profile, factor: float) -> None:
    with pytest.raises(UsageError, match="is not above zero"):
        scaled(measured, factor, "slow")
