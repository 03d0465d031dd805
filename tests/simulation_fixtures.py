"""Plans that are simulated: three partitions on two devices, with their times, and the cluster they are for."""

from collections.abc import Mapping

from hyps.formats.cluster import Cluster, Device, Link
from hyps.formats.plan import ModelInfo, NamedTensor, Partition, Plan, Prediction, Regime, TensorInfo, Variant

SPLIT = {"p0": "camera", "p1": "server", "p2": "server"}
SPLIT_S = {"p0": 0.02, "p1": 0.01, "p2": 0.03}
LOCAL = {"p0": "camera", "p1": "camera", "p2": "camera"}
LOCAL_S = {"p0": 0.02, "p1": 0.1, "p2": 0.3}


def cluster(memory_bytes: int | None = None, **server: object) -> Cluster:
    """Return a camera and a server, 1 MB/s up, 2 MB/s down, a latency of 5 ms."""
    return Cluster(
        devices=(
            Device(name="camera", memory_bytes=memory_bytes),
            Device(name="server", tier="edge", **server),  # type: ignore[arg-type]  # the tests name fields
            Device(name="spare", tier="edge"),
        ),
        links=(
            Link(between=("camera", "server"), up_bytes_per_s=1e6, down_bytes_per_s=2e6, latency_s=0.005),
            Link(between=("camera", "spare"), up_bytes_per_s=1e6, down_bytes_per_s=2e6, latency_s=0.005),
        ),
        entry="camera",
    )


def plan(
    placement: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    *,
    replicas: Mapping[str, tuple[str, ...]] | None = None,
    regimes: tuple[Regime, ...] = (),
    entry: str | None = "camera",
) -> Plan:
    """Return the plan: `image` (8000 bytes), `a` (4000), `b` (2000), `answer` (40); variants `best` and `local`."""
    sizes = {"image": 8000, "a": 4000, "b": 2000, "answer": 40}
    steps = [("p0", "image", "a"), ("p1", "a", "b"), ("p2", "b", "answer")]
    return Plan(
        model=ModelInfo(
            name="tiny",
            sha256="0" * 64,
            ir_version=10,
            opset={"ai.onnx": 17},
            inputs=(NamedTensor(name="image", dtype="float32", shape=(2000,)),),
            outputs=(NamedTensor(name="answer", dtype="float32", shape=(10,)),),
        ),
        tensors={n: TensorInfo(dtype="float32", shape=(nbytes // 4,), nbytes=nbytes) for n, nbytes in sizes.items()},
        partitions=tuple(
            Partition(
                id=name,
                kind="vertical",
                file=f"partitions/{name}.onnx",
                sha256="0" * 64,
                inputs=(taken,),
                outputs=(made,),
                layers=(name,),
                parameters=0,
                weight_bytes=10_000_000,
                peak_memory_bytes=10_000_000 + sizes[taken] + sizes[made],
            )
            for name, taken, made in steps
        ),
        variants=(
            Variant(
                name="best",
                placement=dict(placement or SPLIT),
                prediction=Prediction(
                    partition_s=dict(SPLIT_S if seconds is None else seconds), latency_s=0.074, throughput_rps=25.0
                ),
                replicas=dict(replicas or {}),
                bytes_per_s=(5e5, None),
            ),
            Variant(
                name="local",
                placement=dict(LOCAL),
                prediction=Prediction(partition_s=dict(LOCAL_S)),
                bytes_per_s=(0.0, 5e5),
            ),
        ),
        entry=entry,
        regimes=regimes,
    )
