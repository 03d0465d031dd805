"""A device's part of a plan: a plan of its own, which tells nothing of the others."""

from collections.abc import Collection

from msgspec.structs import replace

from hyps.formats.plan import NamedTensor, Plan, Prediction, Variant


def sub_plan(plan: Plan, device: str, ids: Collection[str]) -> Plan:
    """Return the plan of the partitions `ids` alone, which `device` runs, and of nothing else.

    What the others make for them is an input of that plan, and what the others or the model's user need an output.
    """
    parts = tuple(part for part in plan.partitions if part.id in ids)
    made = {name for part in parts for name in part.outputs}
    used = dict.fromkeys(name for part in parts for name in part.inputs if name not in made)
    wanted = {tensor.name for tensor in plan.model.outputs}
    wanted |= {name for part in plan.partitions if part.id not in ids for name in part.inputs}
    given = [name for part in parts for name in part.outputs if name in wanted]
    crossing = {name for part in parts for name in (*part.inputs, *part.outputs)}
    best = plan.variants[0]
    return replace(
        plan,
        model=replace(
            plan.model,
            inputs=tuple(_named(plan, name) for name in used),
            outputs=tuple(_named(plan, name) for name in given),
            parameters=sum(part.parameters for part in parts),
            weight_bytes=sum(part.weight_bytes for part in parts),
        ),
        tensors={name: info for name, info in plan.tensors.items() if name in crossing},
        partitions=parts,
        split_points=(),
        variants=(
            Variant(
                name=best.name,
                placement=dict.fromkeys(ids, device),
                prediction=Prediction(
                    memory_bytes={n: b for n, b in best.prediction.memory_bytes.items() if n == device},
                    partition_s={i: s for i, s in best.prediction.partition_s.items() if i in ids},
                ),
            ),
        ),
        entry=None,
        regimes=(),
    )


def _named(plan: Plan, name: str) -> NamedTensor:
    info = plan.tensors[name]
    return NamedTensor(name=name, dtype=info.dtype, shape=info.shape)
