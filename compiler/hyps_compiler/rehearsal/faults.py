"""What goes wrong in a rehearsal, when and for how long; the first of two phases. In the second all is well again."""

import math
import random
from collections.abc import Callable
from functools import partial

from hyps_compiler.rehearsal.agenda import Agenda, Process
from hyps_compiler.rehearsal.manager import VirtualManager
from hyps_compiler.rehearsal.network import Network
from hyps_compiler.rehearsal.node import MEMORIES, Health, VirtualNode
from hyps_compiler.rehearsal.options import Options
from hyps_compiler.rehearsal.story import Story

_Begin = Callable[[], object]
"""Begins a fault and returns what it is, for the story."""

_TRY_S, _TRIES = 0.01, 100
_MOST_DOWN_S = 8.0
_MOST_PAUSE_S = 10.0
_CUTS_S = (0.3, 2.0, 6.0)
"""At most, each as often."""


class Faults:
    """Everything that goes wrong, drawn from one seed."""

    def __init__(
        self,
        options: Options,
        agenda: Agenda,
        network: Network,
        manager: VirtualManager,
        nodes: list[VirtualNode],
        clients: list[Process],
        story: Story,
    ) -> None:
        self._options, self._agenda, self._network = options, agenda, network
        self._manager, self._nodes, self._clients, self._story = manager, nodes, clients, story
        self._rng = random.Random()
        """Of the kind of fault that begins: without one kind the others stay as they were."""
        self._kinds: dict[str, _Begin] = {
            "cut": self._cut,
            "one-way-cut": self._cut_one_way,
            "broken-link": self._break_link,
            "slow-link": self._slow_link,
            "node-crash": self._crash_node,
            "node-crash-at-effect": self._crash_node_at_effect,
            "manager-crash": self._crash_manager,
            "manager-crash-at-effect": self._crash_manager_at_effect,
            "pause": self._pause,
            "freeze": self._freeze,
            "slow-node": self._slow_node,
            "hang": self._hang,
            "no-load": self._refuse_loads,
            "other-memory": self._change_memory,
            "failing-item": self._fail_items,
            "late-replan": self._delay_search,
            "failed-replan": self._break_search,
            "drain": self._drain,
        }
        """What begins a fault; the others are how clients and nodes are made."""
        self._rngs = {name: random.Random(f"{name} {options.seed}") for name in self._kinds}
        self._memories = {node.name: node.memory_bytes for node in nodes}
        self.count = 0
        manager.on_crash = partial(self._crash, manager)
        for node in nodes:
            node.on_crash = partial(self._crash, node)

    def plan(self) -> None:
        """Enter all faults into the agenda."""
        options = self._options
        for name in self._kinds:
            rng = self._rngs[name]
            at_s = rng.expovariate(options.rates[name])
            while name in options.faults and at_s < options.fault_s:
                self._agenda.at(at_s, partial(self._begin, name))
                at_s += rng.expovariate(options.rates[name])

    def heal(self) -> None:
        """Make all well: what is down comes back, what is stuck begins anew."""
        self._story.tell(self._agenda.now_s, "faults", "healed")
        self._network.heal()
        self._manager.search.seconds, self._manager.search.fails = 0.05, 0.0
        for process in (self._manager, *self._nodes, *self._clients):
            process.effects_left = None
            if process.awake_s < math.inf:
                process.wake()
        if not self._manager.is_up:
            self._manager.start()
        for node in self._nodes:
            node.health.slowness = 1.0
            if node.is_up and (node.awake_s == math.inf or (node.health.is_hung and self._is_dispensable(node))):
                continue  # nobody mends it: the others have to do without
            was_mended = node.health.is_hung or node.health.refuses or node.memory_bytes != self._memories[node.name]
            if was_mended and node.is_up:  # by its operator, who starts it anew
                node.end()
            node.health, node.memory_bytes = Health(), self._memories[node.name]
            if not node.is_up:
                node.start()

    def _begin(self, name: str) -> None:
        self.count += 1
        self._rng = self._rngs[name]
        self._story.tell(self._agenda.now_s, "faults", f"fault {name}", self._kinds[name]())

    # The network.

    def _processes(self) -> list[Process]:
        return [self._manager, *self._nodes, *self._clients]

    def _draw_way(self) -> tuple[Process, Process]:
        """Return two processes, most often such as say much to each other."""
        inner: list[Process] = [self._manager, *self._nodes]
        one, other = self._rng.sample(inner if self._rng.random() < 0.8 else self._processes(), 2)
        return one, other

    def _cut(self) -> object:
        one, other = self._draw_way()
        seconds = self._rng.random() * self._rng.choice(_CUTS_S)
        self._network.cut(one.name, other.name, seconds)
        self._network.cut(other.name, one.name, seconds)
        return one.name, other.name, seconds

    def _cut_one_way(self) -> object:
        one, other = self._draw_way()
        seconds = self._rng.random() * self._rng.choice(_CUTS_S)
        self._network.cut(one.name, other.name, seconds)
        return one.name, other.name, seconds

    def _break_link(self) -> object:
        """Break a link between nodes, or to the manager, as soon as a tensor is on its way there."""
        rng = random.Random(self._rng.random())
        names = [self._manager.name, *(node.name for node in self._nodes)]
        is_between_nodes = rng.random() < 0.7
        self._break_when_busy(rng, frozenset(names[1:] if is_between_nodes else names), _TRIES)
        return is_between_nodes

    def _break_when_busy(self, rng: random.Random, names: frozenset[str], tries: int) -> None:
        ways = [way for way in self._network.busy_ways() if names.issuperset(way)]
        if ways:
            source, target = rng.choice(ways)
            self._story.tell(self._agenda.now_s, "faults", "link broken", (source, target))
            self._network.break_links(source, target)
        elif tries:
            self._agenda.after(_TRY_S, partial(self._break_when_busy, rng, names, tries - 1))

    def _slow_link(self) -> object:
        one, other = self._draw_way()
        times = self._rng.choice((3.0, 30.0, 100.0))
        self._network.slow_down(one.name, other.name, times)
        self._agenda.after(self._rng.random() * 5.0, lambda: self._network.slow_down(one.name, other.name, 1.0))
        return one.name, other.name, times

    # Processes.

    def _crash(self, process: VirtualManager | VirtualNode) -> object:
        if process.is_up:
            process.end()
            self._come_back(process)
        return process.name

    def _come_back(self, process: VirtualManager | VirtualNode) -> None:
        down_s = self._rng.choice((0.01, 0.5, self._rng.random() * _MOST_DOWN_S))
        self._agenda.after(down_s, lambda: self._start(process))

    def _start(self, process: VirtualManager | VirtualNode) -> None:
        if not process.is_up:
            process.start()

    def _crash_at_effect(self, process: VirtualManager | VirtualNode) -> object:
        if process.is_up:
            process.effects_left = self._rng.randint(0, 30)
        return process.name, process.effects_left

    def _crash_node(self) -> object:
        return self._crash(self._rng.choice(self._nodes))

    def _crash_node_at_effect(self) -> object:
        return self._crash_at_effect(self._rng.choice(self._nodes))

    def _crash_manager(self) -> object:
        return self._crash(self._manager)

    def _crash_manager_at_effect(self) -> object:
        return self._crash_at_effect(self._manager)

    def _pause(self) -> object:
        process = self._rng.choice(self._processes())
        seconds = self._rng.random() * self._rng.choice((1.0, _MOST_PAUSE_S))
        process.pause(seconds)
        for other in self._processes():
            if other is not process:
                self._network.cut(process.name, other.name, seconds)
                self._network.cut(other.name, process.name, seconds)
        return process.name, seconds

    def _freeze(self) -> object:
        """Stop a process that its network does not notice: what keeps its connections is another thread."""
        process = self._rng.choice(self._processes())
        seconds = self._rng.random() * self._rng.choice((1.0, _MOST_PAUSE_S))
        if isinstance(process, VirtualNode) and self._is_dispensable(process) and self._rng.random() < 0.3:
            seconds = math.inf
        process.pause(seconds)
        return process.name, seconds

    def _is_dispensable(self, node: VirtualNode) -> bool:
        """Whether requests can be computed without a node: whatever becomes of it is not mended."""
        return node.device != self._nodes[0].device and not self._options.is_fixed

    # Nodes.

    def _slow_node(self) -> object:
        node = self._rng.choice(self._nodes)
        node.health.slowness = self._rng.choice((3.0, 100.0))
        return node.name, node.health.slowness

    def _hang(self) -> object:
        node = self._rng.choice(self._nodes)
        node.health.is_hung = True
        return node.name

    def _refuse_loads(self) -> object:
        node = self._rng.choice(self._nodes)
        ids = [partition.id for partition in self._manager.plan.partitions]
        node.health.refuses = frozenset(self._rng.sample(ids, self._rng.randint(1, len(ids))))
        return node.name, sorted(node.health.refuses)

    def _change_memory(self) -> object:
        """Let a node go and come back with another memory."""
        node = self._rng.choice(self._nodes)
        node.memory_bytes = self._rng.choice(MEMORIES)
        return self._crash(node), node.memory_bytes

    def _fail_items(self) -> object:
        node = self._rng.choice(self._nodes)
        node.health.fails = self._rng.choice((0.1, 1.0))
        return node.name, node.health.fails

    def _drain(self) -> object:
        node = self._rng.choice(self._nodes)
        if node.is_up and not node.is_paused and not node.has_left:
            node.later(0.0, node.drain)
            self._agenda.after(self._rng.random() * 10.0, lambda: self._start(node))
        return node.name

    # The search.

    def _delay_search(self) -> object:
        self._manager.search.seconds = self._rng.choice((1.0, 10.0))
        return self._manager.search.seconds

    def _break_search(self) -> object:
        self._manager.search.fails = self._rng.choice((0.5, 1.0))
        return self._manager.search.fails
