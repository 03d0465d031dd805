"""Small plans to rehearse with: dataflows and placements that no model need have."""

import random

from hyps.formats.plan import ModelInfo, NamedTensor, Partition, Plan, Prediction, TensorInfo, Variant

_DIGEST = "0" * 64


def draw_plan(rng: random.Random, devices: tuple[str, ...], *, is_batched: bool = False) -> Plan:
    """Return a plan of one to six partitions, placed on some of `devices` in one to three ways.

    Args:
        rng: what is drawn from.
        devices: all there are.
        is_batched: whether requests may be joined along the first dimension.
    """
    inputs = tuple(f"x{index}" for index in range(rng.choice((1, 1, 1, 2))))
    partitions = _draw_partitions(rng, inputs)
    read = {name for partition in partitions for name in partition.inputs}
    made = [name for partition in partitions for name in partition.outputs]
    outputs = tuple(name for name in made if name not in read or rng.random() < 0.1)
    tensors = {name: _draw_tensor(rng, is_batched=is_batched) for name in (*inputs, *made)}
    ids = tuple(partition.id for partition in partitions)
    return Plan(
        model=ModelInfo(
            name="rehearsed",
            sha256=_DIGEST,
            ir_version=10,
            opset={"ai.onnx": 17},
            inputs=tuple(_named(name, tensors[name]) for name in inputs),
            outputs=tuple(_named(name, tensors[name]) for name in outputs),
        ),
        tensors=tensors,
        partitions=partitions,
        variants=tuple(draw_variant(rng, f"v{index}", ids, devices) for index in range(rng.choice((1, 1, 2, 3)))),
        entry=devices[0],
    )


def draw_variant(rng: random.Random, name: str, ids: tuple[str, ...], devices: tuple[str, ...]) -> Variant:
    """Return a placement, some partitions of it on further devices as well."""
    used = rng.sample(devices, rng.randint(1, len(devices)))
    placement = {partition: rng.choice(used) for partition in ids}
    replicas = {}
    for partition in ids:
        others = [device for device in devices if device != placement[partition]]
        if others and rng.random() < 0.2:
            replicas[partition] = tuple(rng.sample(others, rng.randint(1, len(others))))
    seconds = {partition: 0.001 + 0.1 * rng.random() for partition in ids}
    return Variant(name=name, placement=placement, replicas=replicas, prediction=Prediction(partition_s=seconds))


def _draw_partitions(rng: random.Random, inputs: tuple[str, ...]) -> tuple[Partition, ...]:
    partitions: list[Partition] = []
    unread = list(inputs)
    """Made and read by nobody yet: most of it is read next."""
    known = list(inputs)
    for index in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6))):
        count = min(len(known), rng.choice((1, 1, 1, 2, 3)))
        reads = [name for name in unread if rng.random() < 0.7][:count] or [rng.choice(known)]
        while len(reads) < count and rng.random() < 0.5:
            reads.append(rng.choice(known))
        reads = list(dict.fromkeys(reads))
        makes = tuple(f"t{index}_{number}" for number in range(rng.choice((1, 1, 1, 2))))
        partitions.append(_partition(rng, index, tuple(reads), makes))
        unread = [name for name in unread if name not in reads] + list(makes)
        known += makes
    return tuple(partitions)


def _partition(rng: random.Random, index: int, reads: tuple[str, ...], makes: tuple[str, ...]) -> Partition:
    weight_bytes = rng.choice((0, 1_000, 100_000))
    return Partition(
        id=f"p{index}",
        kind="vertical",
        file=f"partitions/p{index}.onnx",
        sha256=f"{index:064x}",
        inputs=reads,
        outputs=makes,
        layers=(f"l{index}",),
        parameters=weight_bytes // 4,
        weight_bytes=weight_bytes,
        peak_memory_bytes=weight_bytes + 10_000,
    )


def _draw_tensor(rng: random.Random, *, is_batched: bool) -> TensorInfo:
    features = rng.choice((1, 25, 250, 25_000))
    return TensorInfo(dtype="float32", shape=("n" if is_batched else 1, features), nbytes=4 * features)


def _named(name: str, info: TensorInfo) -> NamedTensor:
    return NamedTensor(name=name, dtype=info.dtype, shape=info.shape)
