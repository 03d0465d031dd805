"""Plan folders that were damaged or forged, and requests that do not fit them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hostile.case import RUN, SERVE, Build, Case
from hostile.models import content, nothing
from hostile.options import sound
from hyps_compiler.arrays import write_npz
from plan_fixtures import mlp


def planned(change: Callable[[Path], object] = lambda plan: None) -> Build:
    """Write a plan of two partitions, and change something in its folder."""

    def build(folder: Path) -> None:
        mlp(8, 300, 100, batch=1).write(folder / "plan")
        change(folder / "plan")

    return build


def plan_file(data: bytes) -> Build:
    return planned(lambda plan: (plan / "plan.json").write_bytes(data))


def edited(change: Callable[[bytes], bytes]) -> Build:
    return planned(lambda plan: (plan / "plan.json").write_bytes(change((plan / "plan.json").read_bytes())))


def field(name: str, value: object) -> Build:
    def change(data: bytes) -> bytes:
        told = json.loads(data)
        told[name] = value
        return json.dumps(told).encode()

    return edited(change)


def first_file(path: str) -> Build:
    """Name another file as that of the first partition."""

    def change(data: bytes) -> bytes:
        told = json.loads(data)
        told["partitions"][0]["file"] = path
        return json.dumps(told).encode()

    return edited(change)


def flip_byte(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(plan: Path) -> None:
    first, second = plan / "partitions" / "v0.onnx", plan / "partitions" / "v1.onnx"
    first.rename(plan / "x")
    second.rename(first)
    (plan / "x").rename(second)


def truncate(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx.data"
    path.write_bytes(path.read_bytes()[:100])


def link_partition(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx"
    path.rename(plan.parent / "elsewhere")
    path.symlink_to("../../elsewhere")


def no_model(plan: Path) -> None:
    """Put something else in the place of a partition, with the right digest."""
    data = b"no model at all"
    (plan / "partitions" / "v0.onnx").write_bytes(data)
    told = json.loads((plan / "plan.json").read_bytes())
    told["partitions"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (plan / "plan.json").write_text(json.dumps(told))


def other_cpu(folder: Path) -> None:
    mlp(8, 4, batch=1).write(folder / "plan", optimization="native", cpu_family="vax")


def tight(folder: Path) -> None:
    mlp(8, 4, batch=1).write(folder / "plan", memory_bytes=1000)


def partition_as(make: Callable[[Path], object]) -> Build:
    """Put something else in the place of a partition's file."""

    def change(plan: Path) -> None:
        path = plan / "partitions" / "v0.onnx"
        path.unlink()
        make(path)

    return planned(change)


def hard_link(plan: Path) -> None:
    (plan.parent / "elsewhere").hardlink_to(plan / "partitions" / "v0.onnx")


def huge_input(data: bytes) -> bytes:
    """Say that the plan's input is a mebi times larger in both directions."""
    told = json.loads(data)
    told["model"]["inputs"][0]["shape"] = [2**20, 2**20]
    return json.dumps(told).encode()


PLANS = [
    Case("no plan", nothing, RUN, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("plan is a file", content(b"x", "plan"), RUN, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("no plan.json", planned(lambda at: (at / "plan.json").unlink()), RUN, 1, "E_NO_PLAN", "`plan`", "compile"),
    Case("plan.json empty", plan_file(b""), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json no text", plan_file(b'{"format": "\xff\xfe"}'), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json comma", edited(lambda d: d.replace(b"{", b"{,", 1)), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case(
        "plan.json doubled",
        edited(lambda d: d.replace(b'"version": 1', b'"version": 1, "version": 1')),
        RUN,
        1,
        "E_PLAN",
    ),
    Case("plan.json nan", edited(lambda d: d.replace(b'"version": 1', b'"version": NaN')), RUN, 1, "E_PLAN"),
    Case("plan.json list", plan_file(b"[]"), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json deep", plan_file(b"[" * 100_000), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json digits", plan_file(b'{"version":' + b"9" * 5000 + b"}"), RUN, 1, "E_PLAN", "`plan.json`"),
    Case("plan.json mark", edited(lambda d: b"\xef\xbb\xbf" + d), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json 100 MB", plan_file(b"[" * 10**8), RUN, 1, "E_PLAN", "bytes, more than the"),
    Case("future", field("version", 99), RUN, 1, "E_VERSION", "99", "upgrade"),
    Case("other format", field("format", "recipe"), RUN, 1, "E_PLAN", "`recipe`", "compile"),
    Case("escaping path", first_file("../x"), RUN, 1, "E_PLAN", "`../x`", "compile"),
    Case("absolute path", first_file("/etc/passwd"), RUN, 1, "E_PLAN", "`/etc/passwd`", "compile"),
    *(
        Case(f"path {name}", first_file(path), RUN, 1, "E_PLAN", "leaves the plan folder", "compile")
        for name, path in {"dot": ".", "empty": "", "drive": "C:\\x", "nul": "x\0y", "dots": "a/../../x"}.items()
    ),
    Case("partition fifo", partition_as(os.mkfifo), RUN, 1, "E_PATH", "no plain file", "again"),
    Case("partition folder", partition_as(Path.mkdir), RUN, 1, "E_PATH", "no plain file", "again"),
    Case("partition socket", partition_as(lambda at: os.mknod(at, 0o140600)), RUN, 1, "E_PATH", "`partitions/v0.onnx`"),
    Case("partition hard link", planned(hard_link), RUN, 1, "E_PATH", "no plain file", "again"),
    Case("input huge", edited(huge_input), RUN, 1, "E_", "", ""),
    Case("altered", planned(flip_byte), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("swapped", planned(swap), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("weights truncated", planned(truncate), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx.data`", "again"),
    Case("partition gone", planned(lambda at: (at / "partitions/v1.onnx").unlink()), RUN, 1, "E_MISSING", "v1.onnx"),
    Case("partition linked", planned(link_partition), RUN, 1, "E_PATH", "`partitions/v0.onnx`", "again"),
    Case("no partition", planned(no_model), RUN, 1, "E_PLAN", "`v0.onnx`"),
    Case("other cpu", other_cpu, RUN, 1, "E_CPU", "`vax`", "--optimize portable"),
    Case("plan memory", tight, RUN, 3, "E_INFEASIBLE", "v0", "--memory"),
    Case("run memory", planned(), (*RUN, "--memory", "1000"), 3, "E_INFEASIBLE", "v", "--memory"),
    Case("inspect altered", field("version", 99), ("hypsc", "inspect", "plan"), 1, "E_VERSION", "99", "upgrade"),
    Case("verify altered", planned(flip_byte), ("hypsc", "verify", "plan", "--model", "m"), 1, "E_TAMPERED", "v0"),
    Case("worker no plan", nothing, SERVE, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("worker altered", planned(flip_byte), SERVE, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("worker future", field("version", 99), SERVE, 1, "E_VERSION", "99", "upgrade"),
    Case("worker address", planned(), ("hyps-worker", "plan", "--bind", "here"), 2, "E_ADDRESS", "`here`", "tcp://"),
    Case("worker open", planned(), ("hyps-worker", "plan", "--bind", "tcp://0.0.0.0:0"), 2, "E_INSECURE", "0.0.0.0"),
]


def request(name: str = "x.npy", shape: tuple[int, ...] = (1, 8), dtype: str = "float32") -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        np.save(folder / name, np.zeros(shape, dtype))

    return build


def archive(**arrays: tuple[int, ...]) -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        write_npz(folder / "x.npz", {name: np.zeros(shape, np.float32) for name, shape in arrays.items()})

    return build


def pickled(folder: Path) -> None:
    planned()(folder)
    np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def beside_plan(name: str, data: bytes) -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        (folder / name).write_bytes(data)

    return build


def huge_header(folder: Path) -> None:
    """Write 128 bytes that say they hold 4 TiB."""
    planned()(folder)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)


def running(*more: str) -> tuple[str, ...]:
    return (*RUN, *more)


REQUESTS = [
    Case("input name", request(), running("-i", "ghost=x.npy"), 1, "E_TENSOR", "`ghost`", "t0"),
    Case("dtype", request(dtype="int64"), running("-i", "t0=x.npy"), 1, "E_TENSOR", "int64"),
    Case("rank", request(shape=(8,)), running("-i", "t0=x.npy"), 1, "E_TENSOR", "1 x 8"),
    Case("dim", request(shape=(1, 9)), running("-i", "t0=x.npy"), 1, "E_TENSOR", "1 x 9"),
    Case("file gone", planned(), running("-i", "t0=gone.npy"), 1, "E_NOT_FOUND", "`gone.npy`"),
    Case("npz lacks", archive(other=(1, 8)), running("-i", "x.npz"), 1, "E_TENSOR", "`other`", "t0"),
    Case("npz empty", archive(), running("-i", "x.npz"), 1, "E_TENSOR", "`t0`", "t0"),
    Case("no npy", beside_plan("x.npy", b"hello"), running("-i", "t0=x.npy"), 1, "E_TENSOR", "`x.npy`"),
    Case("no npz", beside_plan("x.npz", b"hello"), running("-i", "x.npz"), 1, "E_TENSOR", "`x.npz`"),
    Case("truncated npz", beside_plan("x.npz", b"PK\x03\x04 hello"), running("-i", "x.npz"), 1, "E_TENSOR", "`x.npz`"),
    Case("npz for npy", archive(t0=(1, 8)), running("-i", "t0=x.npz"), 1, "E_TENSOR", "`x.npz`", "-i x.npz"),
    Case("pickled", pickled, running("-i", "t0=x.npy"), 1, "E_TENSOR", "Python objects", "save"),
    Case("4 TiB", huge_header, running("-i", "t0=x.npy"), 1, "E_TENSOR", "`x.npy`"),
    Case("a folder", planned(lambda at: (at.parent / "x.npy").mkdir()), running("-i", "x.npy"), 1, "E_TENSOR", "x.npy"),
    Case("picture", beside_plan("x.png", b"hello"), running("-i", "t0=x.png"), 1, "E_", "", ""),
    Case("answer exists", beside_plan("y.npz", b"mine"), running("-o", "y.npz"), 1, "E_EXISTS", "`y.npz`", "--force"),
    Case("answer nowhere", planned(), running("-o", "a/y.npz"), 1, "E_OUTPUT", "`a/y.npz`", "mkdir -p a"),
    Case("answer empty", planned(), running("-o", ""), 2, "E_USAGE", "`-o`"),
    Case("answer a folder", planned(), running("-o", "plan", "--force"), 1, "E_EXISTS", "`plan`"),
    Case("nothing to run", planned(), ("hypsc", "run"), 2, "E_USAGE", "plan folder", "run --help"),
    Case("two to run", planned(), running("--connect", "tcp://127.0.0.1:1"), 2, "E_USAGE", "not both", "--help"),
    Case("nobody", nothing, ("hypsc", "run", "--connect", "tcp://127.0.0.1:1"), 1, "E_UNAVAILABLE", "127.0.0.1:1"),
    Case("no address", nothing, ("hypsc", "run", "--connect", "here"), 2, "E_ADDRESS", "`here`", "tcp://"),
    Case(
        "connect memory",
        nothing,
        ("hypsc", "run", "--connect", "tcp://127.0.0.1:1", "--memory", "1GB"),
        2,
        "E_USAGE",
        "--memory",
        "hyps-worker",
    ),
]


def verified(folder: Path) -> None:
    """Write a plan and a model with the same outputs that is another."""
    mlp(8, 300, 100, batch=1).write(folder / "plan")
    (folder / "model.onnx").write_bytes(mlp(8, 300, 100, batch=1, seed=99).whole())


def other_names(folder: Path) -> None:
    planned()(folder)
    sound(folder)


VERIFY = ("hypsc", "verify", "plan", "--model", "model.onnx")
VERIFICATIONS = [
    Case("model gone", planned(), VERIFY, 1, "E_NOT_FOUND", "`model.onnx`"),
    Case("other weights", verified, VERIFY, 4, "E_DIFFERENT", "`t"),
    Case("other model", other_names, VERIFY, 1, "E_MODEL", "another model"),
    Case("no model", planned(), ("hypsc", "verify", "plan"), 2, "E_USAGE", "--model"),
    Case("samples", planned(), (*VERIFY, "--samples", "0"), 2, "E_USAGE", "--samples"),
]
