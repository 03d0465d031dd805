"""Nodes and clients for tests of the manager's state machine: they do what it says, in an order that a test chooses."""

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hyps.core.manager_events import (
    Answer,
    AnswerTaken,
    Ask,
    Cancelled,
    Disconnect,
    Drop,
    Emit,
    Ended,
    Fail,
    Keep,
    Leave,
    LinkLost,
    ManagerEvent,
    ManagerInstruction,
    Merge,
    NodeJoined,
    NodeTold,
    PassOn,
    Reject,
    Send,
    Store,
    Submitted,
    Tell,
    TensorCame,
    TensorTaken,
    Ticked,
)
from hyps.core.manager_options import ManagerOptions
from hyps.core.manager_state import ManagerState
from hyps.formats.messages import MachineFacts
from hyps.formats.node_messages import (
    HUB,
    Beat,
    Drain,
    Finished,
    Goodbye,
    ItemFailed,
    Join,
    Joined,
    Retire,
    Setup,
    Started,
)
from hyps.formats.plan import ModelInfo, NamedTensor, Partition, Plan, Prediction, TensorInfo, Variant

NBYTES = 100
"""Of every tensor of `plan_of`."""


def plan_of(
    parts: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    placement: dict[str, str],
    *,
    outputs: Sequence[str],
    inputs: Sequence[str] = ("x",),
    others: Sequence[Variant] = (),
    replicas: dict[str, tuple[str, ...]] | None = None,
    hub_tensors: tuple[str, ...] = (),
    weight_bytes: int = 0,
    seconds: dict[str, float] | None = None,
    entry: str | None = "client",
    shape: tuple[int | str | None, ...] = (5, 5),
) -> Plan:
    """Return a plan of partitions told by id, what they read and what they make; no file of it exists."""
    names = dict.fromkeys((*inputs, *(name for _, reads, makes in parts for name in (*reads, *makes))))
    tensors = {name: TensorInfo(dtype="float32", shape=shape, nbytes=NBYTES) for name in names}

    def named(name: str) -> NamedTensor:
        return NamedTensor(name=name, dtype="float32", shape=shape)

    return Plan(
        model=ModelInfo(
            name="toy",
            sha256="0" * 64,
            ir_version=10,
            opset={"ai.onnx": 21},
            inputs=tuple(map(named, inputs)),
            outputs=tuple(map(named, outputs)),
        ),
        tensors=tensors,
        partitions=tuple(
            Partition(
                id=name,
                kind="vertical",
                file=f"partitions/{name}.onnx",
                sha256="0" * 64,
                inputs=tuple(reads),
                outputs=tuple(makes),
                layers=(),
                parameters=0,
                weight_bytes=weight_bytes,
            )
            for name, reads, makes in parts
        ),
        variants=(
            Variant(
                name="first",
                placement=placement,
                replicas=replicas or {},
                hub_tensors=hub_tensors,
                prediction=Prediction(partition_s=seconds or {}),
            ),
            *others,
        ),
        entry=entry,
    )


CHAIN = (("p0", ("x",), ("a",)), ("p1", ("a",), ("b",)), ("p2", ("b",), ("y",)))


@dataclass(eq=False)
class ToyNode:
    """A node that computes at once what it has the inputs of; a tensor's value is who made it of what."""

    cluster: "ToyCluster"
    device: str
    link: int
    setup: Setup | None = None
    tensors: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    courses: dict[tuple[int, int], int] = field(default_factory=dict)
    done: set[tuple[int, int, str]] = field(default_factory=set)
    retired: dict[int, int] = field(default_factory=dict)
    received: list[tuple[int, int, str]] = field(default_factory=list)
    fails: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Code and message per partition that has no result here."""
    unreachable: tuple[str, ...] = ()
    is_mute: bool = False
    is_dismissed: bool = False

    def beat(self) -> None:
        if not self.is_mute:
            setup = self.setup
            loaded = () if setup is None or setup.plan is None else tuple(p.id for p in setup.plan.partitions)
            number = 0 if setup is None else setup.number
            self.cluster.tell(self, Beat(number, loaded, unreachable=self.unreachable))

    def hear(self, message: Joined | Setup | Retire | Drain | Goodbye) -> None:
        if isinstance(message, Setup):
            assert self.setup is None or message.number >= self.setup.number
            self.setup = message
            self.cluster.later(self.beat)
            known = {course.id for course in message.courses}
            for key, course in list(self.courses.items()):
                assert course in known, "a course was taken away from under a request"
                self.compute(key)
        elif isinstance(message, Retire):
            for number, epoch in message.requests:
                self.retired[number] = max(epoch, self.retired.get(number, 0))
                for key in [key for key in self.tensors if key[0] == number and key[1] <= epoch]:
                    del self.tensors[key], self.courses[key]
        elif isinstance(message, Drain):
            self.is_dismissed = True

    def take(self, number: int, epoch: int, course: int, tensor: str, value: str) -> None:
        if self.is_mute or self.retired.get(number, 0) >= epoch:
            return
        self.received.append((number, epoch, tensor))
        self.tensors.setdefault((number, epoch), {})[tensor] = value
        self.courses[number, epoch] = course
        self.compute((number, epoch))

    def compute(self, key: tuple[int, int]) -> None:
        """Run what can be run, one partition now and the others later."""
        setup = self.setup
        if setup is None or setup.plan is None or key not in self.tensors or self.is_mute:
            return
        course = next((c for c in setup.courses if c.id == self.courses[key]), None)
        here = self.tensors[key]
        for part in setup.plan.partitions:
            ready = course is not None and part.id in course.partitions and all(name in here for name in part.inputs)
            if not ready or (*key, part.id) in self.done:
                continue
            self.done.add((*key, part.id))
            self.cluster.later(lambda part=part: self._run(key, part))  # type: ignore[misc]

    def _run(self, key: tuple[int, int], part: Partition) -> None:
        setup = self.setup
        if key not in self.tensors or setup is None or self.is_mute:
            return
        self.cluster.tell(self, Started(*key, part.id))
        if part.id in self.fails:
            self.cluster.tell(self, ItemFailed(*key, part.id, *self.fails[part.id]))
            return
        course = next(c for c in setup.courses if c.id == self.courses[key])
        routes = {route.tensor: route.devices for route in course.routes}
        self.cluster.executions.append((key[0], part.id))
        for name in part.outputs:
            value = f"{name}({','.join(self.tensors[key][i] for i in part.inputs)})"
            self.tensors[key][name] = value
            for device in routes.get(name, ()):
                self.cluster.carry(self, device, key, course.id, name, value)
        self.cluster.tell(self, Finished(*key, part.id, 0.0, 0.01, NBYTES * len(part.outputs)))
        self.compute(key)


@dataclass
class ToyCluster:
    """A manager, its nodes and clients. What they do waits in `todo`, until `step` picks something of it."""

    plan: Plan
    options: ManagerOptions = field(default_factory=ManagerOptions)
    seed: int = 0
    now_s: float = 0.0
    nodes: dict[int, ToyNode] = field(default_factory=dict)
    store: dict[tuple[int, str], str] = field(default_factory=dict)
    answers: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    order: list[tuple[int, str]] = field(default_factory=list)
    failures: dict[tuple[int, str], Fail] = field(default_factory=dict)
    executions: list[tuple[int, str]] = field(default_factory=list)
    questions: list[Ask] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    disconnected: list[int] = field(default_factory=list)
    has_left: bool = False
    takes_answers: bool = True
    most_held_nbytes: int = 0

    def __post_init__(self) -> None:
        secrets = itertools.count()
        self.manager = ManagerState(self.plan, self.options, lambda: f"secret{next(secrets)}")
        self.rng = random.Random(self.seed)
        self.todo: list[list[Callable[[], None]]] = []
        """Each a line of things that happen one after another."""
        self._lines: dict[object, list[Callable[[], None]]] = {}
        self._links = itertools.count(1000)
        self._fresh: dict[str, str] = {}

    # What tests do.

    def join(
        self, device: str, *, memory: int | None = None, endpoints: tuple[str, ...] = ("tcp://1",), **more: object
    ) -> ToyNode:
        node = ToyNode(self, device, next(self._links))
        facts = MachineFacts(memory, 1, 1e9)
        join = Join(1, device, "", facts, "cpu", endpoints, **more)  # type: ignore[arg-type]
        self.nodes[node.link] = node
        self.happen(NodeJoined(node.link, join))
        return node

    def lose(self, node: ToyNode) -> None:
        if self.nodes.pop(node.link, None) is not None:
            self._lines.pop(node.link, None)
            self.happen(LinkLost(node.link, "killed"))

    def say_goodbye(self, node: ToyNode) -> None:
        self.happen(NodeTold(node.link, Goodbye()))
        self.lose(node)

    def submit(self, client: int, name: str, **more: object) -> None:
        inputs = tuple((tensor.name, NBYTES) for tensor in self.plan.model.inputs)
        self._fresh = {tensor: f"{tensor}@{client}.{name}" for tensor, _ in inputs}
        self.happen(Submitted(client, name, inputs, **more))  # type: ignore[arg-type]

    def cancel(self, client: int, name: str) -> None:
        self.happen(Cancelled(client, name))

    def tick(self, seconds: float = 0.25) -> None:
        self.now_s += seconds
        for node in list(self.nodes.values()):
            node.beat()
        self.happen(Ticked())

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.25)):
            self.tick()
            self.run()

    def step(self) -> bool:
        """Let something happen; return whether there was anything."""
        lines = [line for line in self._lines.values() if line]
        if not lines:
            return False
        self.rng.choice(lines).pop(0)()
        return True

    def run(self) -> None:
        """Let all happen that is to happen without time passing."""
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("it goes on and on")

    def expected(self, client: int, name: str) -> dict[str, str]:
        """Return the right answer."""
        values = {tensor.name: f"{tensor.name}@{client}.{name}" for tensor in self.plan.model.inputs}
        for part in self.plan.partitions:
            values.update({n: f"{n}({','.join(values[i] for i in part.inputs)})" for n in part.outputs})
        return {tensor.name: values[tensor.name] for tensor in self.plan.model.outputs}

    # What nodes do.

    def later(self, what: Callable[[], None]) -> None:
        self._lines.setdefault(object(), []).append(what)

    def tell(self, node: ToyNode, message: Started | Finished | ItemFailed | Beat | Drain | Goodbye) -> None:
        self._line(node).append(lambda: self._if_there(node, NodeTold(node.link, message)))

    def carry(self, node: ToyNode, device: str, key: tuple[int, int], course: int, name: str, value: str) -> None:
        if device == HUB:
            self._line(node).append(lambda: self._to_hub(node, key, name, value))
            return
        others = [other for other in self.nodes.values() if other.device == device and _know_each_other(node, other)]
        for other in others:
            self.later(partial(other.take, *key, course, name, value))

    def _line(self, node: ToyNode) -> list[Callable[[], None]]:
        return self._lines.setdefault(node.link, [])

    def _if_there(self, node: ToyNode, event: ManagerEvent) -> None:
        if node.link in self.nodes:
            self.happen(event)

    def _to_hub(self, node: ToyNode, key: tuple[int, int], name: str, value: str) -> None:
        if node.link in self.nodes:
            self._fresh = {name: value}
            self.happen(TensorCame(node.link, *key, name, NBYTES * rows_of(value)))

    # What the manager does.

    def happen(self, event: ManagerEvent) -> None:
        for step in self.manager.handle(self.now_s, event):
            self._do(step)
        self.manager.check_invariants()
        self.most_held_nbytes = max(self.most_held_nbytes, self.manager.hub.held_nbytes)
        assert self.manager.hub.held_nbytes == NBYTES * sum(map(rows_of, self.store.values()))

    def _do(self, step: ManagerInstruction) -> None:
        match step:
            case Keep(request):
                self.store.update({(request, name): value for name, value in self._fresh.items()})
            case Store(work, tensor):
                assert (work, tensor) not in self.store
                self.store[work, tensor] = self._fresh[tensor]
            case Merge(work, requests):
                for named in self.plan.model.inputs:
                    self.store[work, named.name] = "|".join(self.store[r, named.name] for r in requests)
            case Drop(work, tensor):
                del self.store[work, tensor]
            case Send(link, work, epoch, course, tensor):
                value = self.store[work, tensor]
                self._lines.setdefault(("to", link), []).append(
                    lambda: self._deliver(link, work, epoch, course, tensor, value)
                )
            case Tell(link, message):
                self._lines.setdefault(("to", link), []).append(lambda: self._tell(link, message))
            case Answer():
                self._answer(step)
            case Fail(client, name):
                assert (client, name) not in self.failures or step.code == "E_BUSY"
                self.failures[client, name] = step
            case Ask():
                self.ask(step)
            case Emit() | PassOn() | Ended():
                self.tell_above(step)
            case Reject(link):
                self.rejected.append(step)
                self.nodes.pop(link)
            case Disconnect(link):
                self.disconnected.append(link)
                self.nodes.pop(link, None)
            case Leave():
                self.has_left = True

    def ask(self, step: Ask) -> None:
        self.questions.append(step)

    def tell_above(self, step: Emit | PassOn | Ended) -> None:
        raise AssertionError("nobody is above")

    def _deliver(self, link: int, work: int, epoch: int, course: int, tensor: str, value: str) -> None:
        if link in self.nodes:
            self.nodes[link].take(work, epoch, course, tensor, value)
            self.happen(TensorTaken(link, work, epoch, tensor))

    def _tell(self, link: int, message: Joined | Setup | Retire | Drain | Goodbye) -> None:
        if link in self.nodes:
            self.nodes[link].hear(message)

    def _answer(self, step: Answer) -> None:
        key = (step.client, step.name)
        assert key not in self.answers, "answered twice"
        values = {name: self.store[step.work, name] for name in step.outputs}
        if step.rows is not None:
            values = {name: _row(value, step.rows[0]) for name, value in values.items()}
        self.answers[key] = values
        self.order.append(key)
        if self.takes_answers:
            self.later(lambda: self.happen(AnswerTaken(step.request)))


def _know_each_other(source: ToyNode, target: ToyNode) -> bool:
    """Return whether the manager gave both the same secret for the way from one to the other."""
    if source.setup is None or target.setup is None:
        return False
    mine = {other.device: other.secret for other in source.setup.targets}
    theirs = {other.device: other.secret for other in target.setup.sources}
    return target.device in mine and mine[target.device] == theirs.get(source.device)


def rows_of(value: str) -> int:
    """Return how many requests a value is made of; an empty one has no bytes."""
    return max((str(leaf).count("|") + 1 for leaf in _LEAF.findall(value)), default=1) if value else 0


def _row(value: str, row: int) -> str:
    """Return what a request alone would have given, of one that was computed with others."""
    return _LEAF.sub(lambda leaf: leaf.group().split("|")[row], value)


_LEAF = re.compile(r"[^(),]+@[^(),]+")
