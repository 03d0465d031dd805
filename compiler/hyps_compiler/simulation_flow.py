"""A dataflow with all that is the same for every simulated request worked out beforehand."""

from hyps_compiler.simulation_system import REQUEST, Dataflow, System

Sends = tuple[tuple[int, ...], bool, tuple[tuple[tuple[int, ...], tuple[int, ...], bool], ...]]
"""Of a tensor: partitions that need it where it is made, whether it is an answer there, and its messages: the links,
the partitions it goes to, whether it is an answer."""


class Flow:
    """A dataflow and what follows from it."""

    def __init__(self, dataflow: Dataflow, system: System) -> None:
        self.dataflow, self.system = dataflow, system
        self.partitions = dataflow.partitions
        self.seconds = [dict(partition.seconds) for partition in dataflow.partitions]
        self.is_relay = [not any(seconds.values()) for seconds in self.seconds]
        self.made: dict[int, tuple[int, ...]] = {
            producer: tuple(i for i, tensor in enumerate(dataflow.tensors) if tensor.producer == producer)
            for producer in range(REQUEST, len(self.partitions))
        }
        self.missing = [0] * len(self.partitions)
        for tensor in dataflow.tensors:
            for consumer in set(tensor.consumers):
                self.missing[consumer] += 1
        self.left = len(self.partitions) + sum(tensor.is_output for tensor in dataflow.tensors)
        self.is_fixed = dataflow.is_fixed
        self.device_of = [next(iter(seconds)) if len(seconds) == 1 else -1 for seconds in self.seconds]
        self._sends: dict[tuple[int, ...], Sends] = {}
        self.fixed_sends: list[Sends] = []
        if self.is_fixed:
            self.fixed_sends = [
                self.sends(index, self._maker(tensor.producer), self.device_of)
                for index, tensor in enumerate(dataflow.tensors)
            ]

    def sends(self, tensor: int, source: int, device_of: list[int]) -> Sends:
        """Return where a tensor goes from a device: once to each other that needs it."""
        consumers = self.dataflow.tensors[tensor].consumers
        key = (tensor, source, *(device_of[consumer] for consumer in consumers))
        if key not in self._sends:
            self._sends[key] = self._find_sends(tensor, source, device_of)
        return self._sends[key]

    def _find_sends(self, index: int, source: int, device_of: list[int]) -> Sends:
        tensor, entry, routes = self.dataflow.tensors[index], self.system.entry, self.system.route_of
        users: dict[int, list[int]] = {}
        for consumer in dict.fromkeys(tensor.consumers):
            users.setdefault(device_of[consumer], []).append(consumer)
        here = tuple(users.pop(source, ()))
        messages = [
            (routes[source, target], tuple(users[target]), tensor.is_output and target == entry)
            for target in sorted(users)
        ]
        if tensor.is_output and source != entry and entry not in users:
            messages.append((routes[source, entry], (), True))
        return here, tensor.is_output and source == entry, tuple(messages)

    def _maker(self, producer: int) -> int:
        return self.system.entry if producer == REQUEST else self.device_of[producer]
