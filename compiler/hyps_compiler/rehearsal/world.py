"""A whole rehearsal: manager, nodes and clients, faults, then peace, and what must hold throughout."""

import math
import random
from functools import partial

from hyps.core.manager_options import ManagerOptions
from hyps_compiler.rehearsal.agenda import Agenda, Process
from hyps_compiler.rehearsal.client import Manners, VirtualClient
from hyps_compiler.rehearsal.faults import Faults
from hyps_compiler.rehearsal.manager import VirtualManager
from hyps_compiler.rehearsal.network import Network, Weather
from hyps_compiler.rehearsal.node import MEMORIES, VirtualNode
from hyps_compiler.rehearsal.options import Options
from hyps_compiler.rehearsal.plan import draw_plan
from hyps_compiler.rehearsal.story import Story, require

_MOST_STEPS = 400_000
_SETTLE_S = 10.0
_CHECKED_AFTER = 8


class World:
    """Everything of one rehearsal."""

    def __init__(self, options: Options, story: Story) -> None:
        rng = random.Random(f"world {options.seed}")
        self.options, self.story = options, story
        self.agenda = Agenda()
        self._unchecked = 0
        self._healed_s = math.inf
        self.network = Network(self.agenda, random.Random(f"network {options.seed}"), options.weather)
        devices = tuple(f"d{index}" for index in range(options.devices))
        self.plan = draw_plan(rng, devices, is_batched=options.batch > 1)
        self.manager = VirtualManager(
            self.agenda, self.plan, manager_options(options, rng), self.network, rng, story, self._on_step
        )
        self.nodes = self._make_nodes(rng, devices)
        self.clients = [self._make_client(rng, f"client{index}") for index in range(options.clients)]
        processes: list[Process] = [*self.clients]
        self.faults = Faults(options, self.agenda, self.network, self.manager, self.nodes, processes, story)

    def run(self) -> None:
        """Rehearse.

        Raises:
            BrokenPromiseError: something that must always hold does not.
            HypsError: a state machine found so itself.
        """
        self._begin()
        self._run_until(self.options.fault_s)
        self.faults.heal()
        self._healed_s = self.agenda.now_s
        for client in self.clients:
            client.ask_little()
        until_s, waiting = self.agenda.now_s + self.options.heal_s, math.inf
        while self.agenda.now_s < until_s and not self._is_quiet():
            self._run_until(self.agenda.now_s + 1.0)
            if self._waiting() < waiting:  # slow networks take long for many requests, and bring one after another
                until_s, waiting = self.agenda.now_s + self.options.heal_s, self._waiting()
        self._check_all_ended()
        self._check_it_works()
        self._settle()
        self._check_nothing_is_left()
        is_calm = self.options.is_calm
        require(not is_calm or self.manager.most_epochs <= 1, "something was begun anew for no reason")

    # Beginning.

    def _begin(self) -> None:
        self.manager.start()
        for client in self.clients:
            self.agenda.after(0.0, client.start)
        late_s = random.Random(f"late {self.options.seed}")
        is_late = "late-node" in self.options.faults
        for node in self.nodes:
            at_s = late_s.random() * (self.options.fault_s if is_late else 0.1)
            self.agenda.at(at_s, partial(_start, node))
        self.faults.plan()

    def _make_nodes(self, rng: random.Random, devices: tuple[str, ...]) -> list[VirtualNode]:
        options = self.options
        names = [*devices, *(f"spare{index}" for index in range(options.spare_devices))]
        named = [(name, name) for name in names]
        if "duplicate-node" in options.faults:
            named.append((f"{names[0]}again", names[0]))
        nodes = []
        for name, device in named:
            node = VirtualNode(self.agenda, name, device, self.plan, self.network, rng, self.story, self._on_step)
            node.load_s = rng.choice((0.01, 0.3))
            node.compute_s = rng.choice((0.001, 0.03, 0.2))
            node.is_open_to_others = rng.random() < 0.9
            # One device holds everything, and all do where nothing can be placed anew: it can work once all is well.
            memory_bytes = rng.choice(MEMORIES)
            node.memory_bytes = None if device == devices[0] or options.is_fixed else memory_bytes
            nodes.append(node)
        return nodes

    def _make_client(self, rng: random.Random, name: str) -> VirtualClient:
        options = self.options
        faults = options.faults
        manners = Manners(
            requests=options.requests,
            think_s=options.think_s,
            most_waiting=rng.choice((1, 3, 30)),
            cancels=0.2 if "cancel" in faults else 0.0,
            leaves=0.1 if "client-leaves" in faults else 0.0,
            deadline=0.3 if "deadline" in faults else 0.0,
            most_rows=2 if options.batch > 1 else 1,
            some_outputs=0.2,
            repeats=0.1,
            late_s=_most_late_s(options.weather) if options.is_calm else math.inf,
        )
        return VirtualClient(self.agenda, name, self.plan, self.network, manners, rng, self.story, self._on_step)

    # What must hold.

    def _on_step(self, process: Process) -> None:
        """Look at what a process has become with what it did."""
        if not process.is_up:
            return
        self._unchecked += 1
        if not self.options.is_checked_always and self._unchecked < _CHECKED_AFTER:
            return
        self._unchecked = 0
        if isinstance(process, VirtualNode):
            process.state.check_invariants()
            held = process.held_nbytes()
            require(held == process.state.held_nbytes, lambda: f"{process.name} stores {held} bytes unaccounted for")
            spare = process.spare_nbytes()
            if spare is not None and spare < 0:  # it may be for one request alone
                require(len(process.store) <= 1, lambda: f"{process.name} has {spare} bytes left, {[*process.store]}")
        elif isinstance(process, VirtualManager):
            process.state.check_invariants()
            held = process.held_nbytes()
            most = process.state.hub.held_nbytes
            require(held == most, lambda: f"the hub stores {held} bytes and counts {most}")
            hub = process.state.hub
            is_within = held <= hub.max_nbytes or len(hub) <= 1
            require(is_within, lambda: f"the hub stores {held} bytes of {len(hub)} requests, {hub.max_nbytes} allowed")

    def _run_until(self, until_s: float) -> None:
        require(self.agenda.run(until_s, _MOST_STEPS), "it goes on and on without time passing")

    def _settle(self) -> None:
        until_s = self.agenda.now_s + _SETTLE_S
        while self.agenda.now_s < until_s and self._left():
            self._run_until(self.agenda.now_s + 0.5)

    def _waiting(self) -> int:
        """Return how many requests are still to end or to be asked."""
        return sum(client.outstanding for client in self.clients)

    def _is_quiet(self) -> bool:
        return not self._waiting()

    def _check_all_ended(self) -> None:
        waiting = [
            f"{client.name} {asked.name}" for client in self.clients for asked in client.asked if not asked.ended
        ]
        require(not waiting, lambda: f"{waiting} have no end {self.options.heal_s} s after all is well again")

    def _check_it_works(self) -> None:
        """Require that one more request of each client is answered.

        A device that computes for too long is cut off and comes back when that has ended; requests need not wait as
        long as that, nor for the next search after one that failed: they fail with the reason, and the next one is
        answered. Those that find others before them come again.
        """
        until_s = self.agenda.now_s + self.options.heal_s
        held_up_s = self._healed_s + _SETTLE_S
        for client in self.clients:
            asked = client.ask_once_more()
            while self.agenda.now_s < until_s and (asked is None or asked.ended != "done"):
                if any(node.is_up and node.state.is_held_up for node in self.nodes):
                    held_up_s = self.agenda.now_s + _SETTLE_S
                self._run_until(self.agenda.now_s + 0.2)
                is_excused = asked is not None and asked.ended == "E_UNAVAILABLE" and asked.asked_s <= held_up_s
                if asked is None or is_excused or asked.ended == "E_BUSY":
                    asked = client.ask_once_more()
            ended = "not reached" if asked is None else asked.ended or "waiting"
            require(ended == "done", f"all is well, and {client.name}'s last request is {ended}")

    def _check_nothing_is_left(self) -> None:
        left = self._left()
        require(not left, f"there still is {left}")

    def _left(self) -> dict[str, object]:
        """Return what is stored, or known of requests, where nothing should be."""
        state = self.manager.state
        here: dict[str, object] = {
            "tensors at the hub": self.manager.store,
            "records of the hub": len(state.hub),
            "requests": len(state.queue),
            "leases": len(state.leases),
            "work for another attempt": state.waiting_again,
        }
        for node in (node for node in self.nodes if not node.is_paused):
            here[f"tensors at {node.name}"] = node.store
            here[f"requests at {node.name}"] = len(node.state)
            here[f"{node.name}, told to leave"] = node.is_overdue
        return {what: value for what, value in here.items() if value}


def _most_late_s(weather: Weather) -> float:
    """Return how much later than its deadline a client may hear of a request where nothing fails."""
    return 0.5 + 4 * weather.delay_s * (1 + weather.jitter)


def _start(node: VirtualNode) -> None:
    if not node.is_up:
        node.start()


def manager_options(options: Options, rng: random.Random) -> ManagerOptions:
    """Return how the manager works: as always, but with times that pass in a rehearsal."""
    return ManagerOptions(
        is_fixed=options.is_fixed,
        is_via_hub=options.is_via_hub,
        keep=rng.choice((None, None, "all")),
        max_requests=options.max_requests,
        buffer_nbytes=rng.choice((None, options.max_nbytes)),
        batch_rows=options.batch,
        batch_wait_s=options.batch_wait_s,
        gather_s=rng.choice((0.5, 3.0)),
        patience_s=5.0,
        loading_silence_s=6.0,
        least_lease_s=2.0,
        unknown_lease_s=8.0,
        stall_s=math.inf if options.is_netless else 3.0,
        settle_s=1.0,
        replan_pause_s=3.0,
        answer_wait_s=8.0,
    )
