"""Plans whose partitions have forms, so that their weights can be read."""

from pathlib import Path

from msgspec.structs import replace

from hyps.formats.plan import Plan
from hyps_compiler.forms import emit_forms
from plan_fixtures import Dataflow, write_plan_file


def write_formed(flow: Dataflow, folder: Path, *, memory_bytes: int | None = None) -> Plan:
    """Write the plan folder of a dataflow, a form for every partition, and return the plan."""
    plan = flow.write(folder, memory_bytes=memory_bytes)
    partitions = emit_forms(folder, plan.partitions, flow.outputs, flow.feeds())
    assert all(partition.form is not None for partition in partitions)
    plan = replace(plan, partitions=partitions)
    write_plan_file(folder, plan)
    return plan
