"""A search that found nothing is not the last word: other nodes, other refusals, and mere accidents are tried again."""

from cluster_fixtures import plan_of
from hyps.core.courses import flow_of
from hyps.core.manager_options import ManagerOptions
from hyps.core.membership import Members
from hyps.core.placing import Placer, Search
from hyps.core.timings import Timings
from hyps.formats.messages import MachineFacts
from hyps.formats.node_messages import NODE_PROTOCOL_VERSION, Join
from hyps.formats.plan import Prediction
from hyps.formats.replanning import Answer, Refusal

_OPTIONS = ManagerOptions(gather_s=0.0, replan_pause_s=30.0, patience_s=20.0)


class _Bench:
    """A placer of a plan for `gone`, which never comes."""

    def __init__(self) -> None:
        plan = plan_of([("p", ["x"], ["y"])], {"p": "gone"}, outputs=["y"])
        self.members = Members()
        self.placer = Placer(plan, flow_of(plan), _OPTIONS, Timings(plan))

    def join(self, link: int, device: str, memory_bytes: int | None = None) -> None:
        facts = MachineFacts(memory_bytes, 1, 1e9)
        self.members.add(link, Join(NODE_PROTOCOL_VERSION, device, "", facts, ""), 0.0)

    def asked(self, now_s: float) -> int | None:
        decision = self.placer.decide(now_s, self.members, is_ready=False, closed=())
        return decision.question.number if isinstance(decision, Search) else None

    def refuse(self, number: int | None, now_s: float, code: str) -> None:
        assert number is not None
        self.placer.reply(Refusal(number=number, code=code, message="no"), self.members, now_s)


def test_what_is_infeasible_is_not_asked_again_for_the_same_nodes() -> None:
    bench = _Bench()
    bench.join(1, "a")
    bench.refuse(bench.asked(1.0), 2.0, "E_INFEASIBLE")

    assert bench.asked(1000.0) is None


def test_a_search_that_broke_is_begun_again_after_what_waits_in_vain_has_failed() -> None:
    bench = _Bench()
    bench.join(1, "a")
    bench.refuse(bench.asked(1.0), 2.0, "E_FAILED")

    assert bench.asked(51.0) is None
    assert bench.asked(52.5) is not None


def test_a_node_that_comes_back_with_more_memory_is_another_node() -> None:
    bench = _Bench()
    bench.join(1, "a", 1000)
    bench.refuse(bench.asked(1.0), 2.0, "E_INFEASIBLE")
    node = bench.members.by_link(1)
    assert node is not None

    bench.members.remove(node)
    bench.placer.forget(node)
    bench.join(2, "a", 10**9)

    assert bench.asked(3.0) is not None


def test_an_answer_that_is_impossible_does_not_make_it_ask_at_once() -> None:
    bench = _Bench()
    bench.join(1, "a")
    number = bench.asked(1.0)
    assert number is not None

    bench.placer.reply(Answer(number=number, placement={"p": "elsewhere"}, prediction=Prediction()), bench.members, 2.0)

    assert bench.asked(2.5) is None
    assert bench.asked(60.0) is not None


def test_why_nothing_can_be_placed_names_the_device_and_its_reason() -> None:
    bench = _Bench()
    bench.join(1, "a")
    node = bench.members.by_link(1)
    assert node is not None
    number = bench.asked(1.0)
    bench.placer.refuse(node, {"p": "no space left on the device"})

    bench.refuse(number, 2.0, "E_INFEASIBLE")

    assert bench.placer.note == "no; `a` cannot load `p`: no space left on the device"
