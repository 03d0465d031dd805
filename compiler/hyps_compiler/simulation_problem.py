"""A placement that a search has found, as the simulation takes it: the same seconds that `estimate` adds up."""

from collections.abc import Iterable

from hyps_compiler.simulation_system import REQUEST, Dataflow, Device, Link, Partition, System, Tensor
from hyps_passes.assignment import Assignment, Stage, crossing_flows, stage_name
from hyps_passes.problem import Problem, channel_name
from hyps_passes.request_run import stage_s


def system_of(problem: Problem, assignment: Assignment) -> System:
    """Return a problem's machines and channels with the dataflow of one of its placements.

    Layers behind early exits count with the probability that a request comes so far, as they do in the estimate.
    """
    make = _pipelined if assignment.is_pipeline else _direct
    return System(
        devices=tuple(Device(machine.name) for machine in problem.machines),
        links=tuple(
            Link(channel_name(problem, c.source, c.target), c.source, c.target, c.s_per_byte, c.latency_s, c.message_s)
            for c in problem.channels
        ),
        dataflows=(make(problem, assignment),),
        entry=problem.entry,
        routes=problem.paths,
    )


def _pipelined(problem: Problem, assignment: Assignment) -> Dataflow:
    """Each stage hands on to the next what any later one needs, as a tensor per hop; answers go straight back.

    The first stage begins with the request, whose tensors are where it runs.
    """
    stages, crossing = assignment.stages, crossing_flows(problem, assignment)
    tensors = [
        _tensor(problem, flow, producer=index, consumers=(index + 1,))
        for index in range(len(stages) - 1)
        for flow in crossing[index]
    ]
    for index, stage in enumerate(stages):
        tensors += [
            _tensor(problem, f, producer=index, is_output=True) for f in _made(problem, stage) if _is_answer(problem, f)
        ]
    borders = [
        _exports_s(problem, stage, crossing[i]) + (_imports_s(problem, stage, crossing[i - 1]) if i else 0.0)
        for i, stage in enumerate(stages)
    ]
    return Dataflow("pipeline", _partitions(problem, stages, borders), tuple(tensors))


def _direct(problem: Problem, assignment: Assignment) -> Dataflow:
    """Each tensor goes straight to the stages that need it."""
    stages = tuple(stage for stage in assignment.stages if stage.tasks)
    stage_of = {task: index for index, stage in enumerate(stages) for task in stage.tasks}
    tensors, borders = [], [0.0] * len(stages)
    for index, stage in enumerate((Stage((problem.entry,), ()), *stages), start=REQUEST):
        for flow in problem.made_by.get(REQUEST, ()) if index == REQUEST else _made(problem, stage):
            consumers = tuple(sorted({stage_of[c] for c in problem.flows[flow].consumers} - {index}))
            if consumers and index != REQUEST:
                borders[index] += _exports_s(problem, stage, (flow,))
            for consumer in consumers:
                borders[consumer] += _imports_s(problem, stages[consumer], (flow,))
            if consumers or _is_answer(problem, flow):
                is_output = _is_answer(problem, flow)
                tensors.append(_tensor(problem, flow, producer=index, consumers=consumers, is_output=is_output))
    return Dataflow("placement", _partitions(problem, stages, borders), tuple(tensors))


def _partitions(problem: Problem, stages: tuple[Stage, ...], borders: list[float]) -> tuple[Partition, ...]:
    parts = []
    for index, (stage, border) in enumerate(zip(stages, borders, strict=True)):
        is_idle = not stage.tasks and not index  # the entry, which has nothing to do
        seconds = tuple((m, 0.0 if is_idle else stage_s(problem, stage, m) + border) for m in stage.machines)
        parts.append(Partition(stage_name(problem, stage), seconds))
    return tuple(parts)


def _tensor(
    problem: Problem, flow: int, *, producer: int, consumers: tuple[int, ...] = (), is_output: bool = False
) -> Tensor:
    told = problem.flows[flow]
    return Tensor(told.name, told.nbytes, producer, consumers, is_output, problem.reach(flow))


def _made(problem: Problem, stage: Stage) -> list[int]:
    return [flow for task in stage.tasks for flow in problem.made_by.get(task, ())]


def _is_answer(problem: Problem, flow: int) -> bool:
    return problem.flows[flow].is_output


def _exports_s(problem: Problem, stage: Stage, flows: Iterable[int]) -> float:
    return sum(problem.export_s[f][stage.machine] for f in flows if problem.flows[f].producer != REQUEST)


def _imports_s(problem: Problem, stage: Stage, flows: Iterable[int]) -> float:
    return sum(problem.import_s[f][stage.machine] for f in flows if problem.flows[f].producer != REQUEST)
