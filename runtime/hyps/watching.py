"""What a worker that serves a plan alone tells of itself."""

import time

from hyps.adapters.machine import rss_nbytes
from hyps.core.admission import Admission, ServiceState
from hyps.core.rates import quantile
from hyps.core.watches import RequestsWatch, WorkWatch
from hyps.engine import Engine
from hyps.formats.plan import Partition, Prediction
from hyps.formats.status import Durations, HubStatus, NodeStatus, PartitionStatus, Report, RunningItem

_LATEST = 1024


class ServiceWatch:
    """Counts what a service does, and makes its report; belongs to the thread of the service's server.

    Attributes:
        requests: told of every step of every request.
        work: told of every request that was computed.
    """

    def __init__(self, engine: Engine, admission: Admission, device: str) -> None:
        """Take what is watched."""
        self._engine, self._admission, self._device = engine, admission, device
        self._since_s = time.monotonic()
        self.requests, self.work = RequestsWatch(), WorkWatch()

    def report(self, computing: int, computing_s: float) -> Report:
        """Return how the service is; `computing` requests have been computed for `computing_s` seconds."""
        from importlib.metadata import version  # brings 4 MB, which a worker that nobody watches does without

        plan, now_s = self._engine.plan, time.monotonic()
        first = plan.variants[0]
        state = "serving" if self._admission.state is ServiceState.SERVING else "draining"
        partitions = tuple(self._partition(partition, first.prediction) for partition in plan.partitions)
        return Report(
            role="worker",
            state=state,
            device=self._device,
            producer=f"hyps {version('hyps')}",
            model=plan.model.name,
            strategy=plan.strategy,
            variant=first.name,
            uptime_s=now_s - self._since_s,
            nodes=(self._node(state, now_s, computing, computing_s),),
            partitions=partitions,
            requests=self.requests.status(
                now_s,
                queued=max(0, len(self._admission) - computing),
                running=computing,
                max_queued=self._admission.max_requests,
                prediction=first.prediction,
            ),
            hub=HubStatus(queued_nbytes=self._admission.nbytes, max_queued_nbytes=self._admission.max_nbytes),
        )

    def _node(self, state: str, now_s: float, computing: int, computing_s: float) -> NodeStatus:
        engine = self._engine
        item = RunningItem(partition="", request="", elapsed_s=computing_s)
        return NodeStatus(
            device=self._device,
            state=state,
            joined_s=now_s - self._since_s,
            memory_nbytes=engine.memory_bytes,
            resident_nbytes=rss_nbytes(),
            held_nbytes=self._admission.nbytes,
            threads=engine.threads,
            partitions=tuple(partition.id for partition in engine.plan.partitions),
            loaded=engine.kept,
            running=(item,) if computing else (),
            waiting=max(0, len(self._admission) - computing),
            utilisation=self.work.utilisation(now_s, computing_s if computing else 0.0),
            items_done=self.work.items_done,
            items_per_s=self.work.items_per_s(now_s),
        )

    def _partition(self, partition: Partition, prediction: Prediction) -> PartitionStatus:
        """Return how one fares; its seconds are those that the engine remembers, by the thread that computes."""
        ordered = sorted(list(self._engine.timings[partition.id].run_s)[-_LATEST:])
        return PartitionStatus(
            partition=partition.id,
            kind=partition.kind,
            state="loaded" if partition.id in self._engine.kept else "placed",
            devices=(self._device,),
            predicted_s=prediction.partition_s.get(partition.id),
            run=Durations(
                n=len(ordered),
                total_s=sum(ordered),
                p50_s=quantile(ordered, 0.5),
                p95_s=quantile(ordered, 0.95),
                p99_s=quantile(ordered, 0.99),
            ),
        )
