"""What stands for tensors in a rehearsal: numbers that tell exactly what was computed from what."""

from collections.abc import Mapping, Sequence

from hyps.formats.plan import Partition, Plan

Value = tuple[int, ...]
"""A tensor: one number for each of its rows (the leading dimension), so that batches can be joined and parted."""


def input_value(request: int, index: int, rows: int = 1) -> Value:
    """Return what a client gives as its `index`th input."""
    return tuple(hash((request, index, row, 1)) for row in range(rows))


def compute(partition: Partition, given: Mapping[str, Value]) -> dict[str, Value]:
    """Return what a partition makes: numbers that no other partition, input or order of inputs gives."""
    number = _number(partition.id)
    columns = [given[name] for name in partition.inputs]
    rows = len(columns[0])
    return {
        name: tuple(hash((number, index, *(column[row] for column in columns))) for row in range(rows))
        for index, name in enumerate(partition.outputs)
    }


def reference(plan: Plan, given: Mapping[str, Value]) -> dict[str, Value]:
    """Return the model's outputs."""
    values = dict(given)
    for partition in plan.partitions:
        values.update(compute(partition, values))
    return {tensor.name: values[tensor.name] for tensor in plan.model.outputs}


def join(values: Sequence[Value]) -> Value:
    """Return the rows of all, as one tensor."""
    return tuple(row for value in values for row in value)


def _number(partition: str) -> int:
    return int(partition.removeprefix("p"))
