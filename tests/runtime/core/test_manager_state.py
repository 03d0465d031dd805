"""The manager's state machine, one story at a time."""

from dataclasses import replace

import pytest

from cluster_fixtures import CHAIN, NBYTES, ToyCluster, ToyNode, plan_of
from hyps.core.course_book import CourseState
from hyps.core.manager_events import LinkLost, NodeTold, Replied, TensorCame, ToldToLeave
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.core.membership import BASE_NBYTES, NodeState
from hyps.core.network_state import NetworkState, PartitionState
from hyps.formats.node_messages import Beat, Drain, Finished, Running, Started
from hyps.formats.plan import Plan, Prediction, Variant
from hyps.formats.replanning import Answer, Refusal

PLACED = {"p0": "d0", "p1": "d1", "p2": "d2"}
ALONE = ManagerOptions(no_planner="nothing can be searched here")


def chain(**more: object) -> Plan:
    return plan_of(CHAIN, PLACED, outputs=("y",), **more)  # type: ignore[arg-type]


def running(
    plan: Plan | None = None, options: ManagerOptions = ALONE, *devices: str
) -> tuple[ToyCluster, list[ToyNode]]:
    """Return a cluster whose devices have joined and loaded."""
    cluster = ToyCluster(plan or chain(), options)
    nodes = [cluster.join(device) for device in devices or ("d0", "d1", "d2")]
    cluster.run()
    return cluster, nodes


def submit_all(cluster: ToyCluster, count: int, client: int = 1) -> list[tuple[int, str]]:
    keys = [(client, f"r{number}") for number in range(count)]
    for key in keys:
        cluster.submit(*key)
    return keys


def check_answers(cluster: ToyCluster, keys: list[tuple[int, str]]) -> None:
    for key in keys:
        assert cluster.answers[key] == cluster.expected(*key)


def network_state(cluster: ToyCluster) -> NetworkState:
    return cluster.manager.network.state


def partition_state(cluster: ToyCluster, part: str) -> PartitionState:
    return cluster.manager.network.lives[part].state


# Placement.


def test_the_network_goes_from_partitioned_to_inferring() -> None:
    cluster = ToyCluster(chain(), ALONE)
    network = cluster.manager.network
    assert network_state(cluster) is NetworkState.PARTITIONED
    cluster.join("d0")
    cluster.run()
    assert network_state(cluster) is NetworkState.PARTITIONED
    assert network.placer.note == "waiting for `d1`, `d2`"
    cluster.join("d1")
    cluster.join("d2")
    assert network_state(cluster) is NetworkState.SCHEDULING
    assert {life.state for life in network.lives.values()} == {PartitionState.PLACED}
    cluster.run()
    assert network_state(cluster) is NetworkState.INFERRING
    assert {life.state for life in network.lives.values()} == {PartitionState.LOADED}


def test_a_partition_is_inferring_while_a_device_computes_it() -> None:
    cluster, nodes = running()
    cluster.submit(1, "r")
    cluster.happen(NodeTold(nodes[0].link, Started(1, 1, "p0")))
    assert partition_state(cluster, "p0") is PartitionState.INFERRING
    cluster.happen(NodeTold(nodes[0].link, Finished(1, 1, "p0", 0.0, 0.1, NBYTES)))
    assert partition_state(cluster, "p0") is PartitionState.LOADED
    cluster.happen(NodeTold(nodes[0].link, Started(1, 1, "p0")))
    assert partition_state(cluster, "p0") is PartitionState.LOADED, "it was told again"


def test_other_placements_of_the_plan_are_taken_when_the_first_ones_devices_do_not_come() -> None:
    other = Variant(name="small", placement=dict.fromkeys(PLACED, "d0"))
    cluster = ToyCluster(chain(others=(other,)), ManagerOptions(gather_s=3.0))
    cluster.join("d0")
    cluster.wait(2.5)
    assert not cluster.manager.network.ready
    cluster.wait(1.0)
    assert [course.variant for course in cluster.manager.network.ready] == ["small"]


def test_the_first_placement_is_taken_up_again_when_its_devices_are_back() -> None:
    other = Variant(name="small", placement=dict.fromkeys(PLACED, "d0"))
    cluster = ToyCluster(chain(others=(other,)), ManagerOptions(gather_s=1.0, settle_s=2.0))
    cluster.join("d0")
    cluster.wait(1.5)
    cluster.join("d1")
    cluster.join("d2")
    cluster.wait(1.5)
    assert [course.variant for course in cluster.manager.network.ready] == ["small"], "they have just come"
    cluster.wait(1.0)
    assert [course.variant for course in cluster.manager.network.ready] == ["first"]


def test_a_fixed_manager_waits_for_its_own_placement() -> None:
    other = Variant(name="small", placement=dict.fromkeys(PLACED, "d0"))
    cluster = ToyCluster(chain(others=(other,)), ManagerOptions(is_fixed=True, gather_s=1.0))
    cluster.join("d0")
    cluster.join("d9")
    cluster.wait(30.0)
    assert not len(cluster.manager.network.book)
    assert not cluster.questions


def test_a_plan_for_one_device_runs_on_whichever_comes() -> None:
    plan = plan_of(CHAIN, dict.fromkeys(PLACED, "local"), outputs=("y",), entry=None)
    cluster, _ = running(plan, ALONE, "kitchen")
    keys = submit_all(cluster, 3)
    cluster.run()
    check_answers(cluster, keys)


def test_a_search_is_asked_for_when_no_placement_of_the_plan_is_possible() -> None:
    cluster = ToyCluster(chain(), ManagerOptions(gather_s=1.0))
    cluster.join("d0", memory=10**9)
    cluster.join("d9")
    cluster.wait(1.5)
    question = cluster.questions[-1].question
    assert [device.name for device in question.devices] == ["d0", "d9"]
    assert [part.id for part in question.partitions] == ["p0", "p1", "p2"]
    assert cluster.manager.network.state is NetworkState.SCHEDULING
    keys = submit_all(cluster, 2)
    placement = {"p0": "d9", "p1": "d0", "p2": "d9"}
    cluster.happen(Replied(Answer(number=question.number, placement=placement, prediction=Prediction())))
    cluster.run()
    check_answers(cluster, keys)
    assert len(cluster.questions) == 1


def test_a_search_that_found_nothing_is_not_repeated_until_devices_change() -> None:
    cluster = ToyCluster(chain(), ManagerOptions(gather_s=1.0, patience_s=5.0))
    cluster.join("d0")
    cluster.wait(1.5)
    number = cluster.questions[-1].question.number
    cluster.happen(Replied(Refusal(number=number, code="E_INFEASIBLE", message="`d0` lacks 3 MB")))
    cluster.submit(1, "r")
    cluster.wait(4.0)
    assert len(cluster.questions) == 1
    assert not cluster.failures
    cluster.wait(2.0)
    assert cluster.failures[1, "r"].code == "E_UNAVAILABLE"
    assert "`d0` lacks 3 MB" in cluster.failures[1, "r"].message
    cluster.join("d1")
    cluster.run()
    assert len(cluster.questions) == 2


def test_a_device_that_is_not_used_is_planned_with_once_it_has_settled() -> None:
    cluster, _ = running(options=ManagerOptions(settle_s=2.0, replan_pause_s=1.0))
    cluster.wait(4.0)
    assert not cluster.questions
    cluster.join("d3")
    cluster.wait(1.5)
    assert not cluster.questions
    cluster.wait(1.5)
    question = cluster.questions[-1].question
    assert question.current == {"p0": ("d0",), "p1": ("d1",), "p2": ("d2",)}
    kept = Answer(number=question.number, placement=PLACED, prediction=Prediction(), is_kept=True)
    cluster.happen(Replied(kept))
    cluster.wait(10.0)
    assert len(cluster.questions) == 1
    assert [course.whole.placement for course in cluster.manager.network.ready] == [PLACED]


def test_a_slow_partition_calls_for_a_search_after_a_while() -> None:
    seconds = dict.fromkeys(PLACED, 0.01)
    cluster, nodes = running(chain(seconds=seconds), ManagerOptions(settle_s=2.0, replan_pause_s=60.0))
    timings = cluster.manager.network.timings
    for _ in range(40):
        timings.add("p1", "d1", 0.015)
    cluster.wait(4.0)
    assert not cluster.questions, "not that slow"
    for _ in range(40):
        timings.add("p1", "d1", 0.03)
    cluster.wait(1.0)
    assert not cluster.questions, "perhaps it passes"
    cluster.wait(3.0)
    question = cluster.questions[-1].question
    measured = {(t.partition, t.device): t.seconds for t in question.timings if t.is_measured}
    assert measured["p1", "d1"] == pytest.approx(0.03, rel=0.01)
    cluster.wait(30.0)
    assert len(cluster.questions) == 1
    assert nodes[1].device == "d1"


def test_new_courses_are_ready_before_old_ones_go() -> None:
    cluster, nodes = running(options=ManagerOptions(settle_s=1.0, replan_pause_s=1.0))
    cluster.join("d3")
    cluster.wait(2.5)
    keys = submit_all(cluster, 20)
    number = cluster.questions[-1].question.number
    moved = {**PLACED, "p1": "d3"}
    cluster.happen(Replied(Answer(number=number, placement=moved, prediction=Prediction())))
    book = cluster.manager.network.book
    assert sorted(course.state.value for course in book) == ["preparing", "ready"]
    cluster.run()
    check_answers(cluster, keys)
    assert [(course.state, course.whole.placement) for course in book] == [(CourseState.READY, moved)]
    setup = nodes[1].setup
    assert setup is not None
    assert setup.plan is None
    assert cluster.manager.watch.status(0.0, queued=0, running=0).retried == 0


def test_where_both_do_not_fit_the_old_course_ends_first() -> None:
    plan = plan_of(CHAIN, dict.fromkeys(PLACED, "d0"), outputs=("y",), weight_bytes=10**8)
    cluster = ToyCluster(plan, ManagerOptions(settle_s=1.0, replan_pause_s=1.0))
    cluster.join("d0", memory=400 * 10**6)
    cluster.join("d1", memory=200 * 10**6)
    cluster.wait(2.5)
    keys = submit_all(cluster, 8)
    number = cluster.questions[-1].question.number
    moved = {"p0": "d1", "p1": "d0", "p2": "d0"}
    cluster.happen(Replied(Answer(number=number, placement=moved, prediction=Prediction())))
    assert sorted(course.state.value for course in cluster.manager.network.book) == ["preparing", "ready"]
    cluster.run()
    back = {"p0": "d0", "p1": "d1", "p2": "d0"}
    cluster.manager.network.placer.is_searching = True
    keys += [(2, f"r{n}") for n in range(8)]
    for key in keys[8:]:
        cluster.submit(*key)
    cluster.happen(Replied(Answer(number=number, placement=back, prediction=Prediction())))
    assert [course.state.value for course in cluster.manager.network.book] == ["retiring"]
    cluster.run()
    check_answers(cluster, keys)
    assert [course.whole.placement for course in cluster.manager.network.ready] == [back]


# Nodes.


def test_a_second_node_of_the_same_name_is_refused_while_the_first_lives() -> None:
    cluster, nodes = running()
    cluster.join("d0")
    assert [(step.code, step.link) for step in cluster.rejected] == [("E_DUPLICATE", cluster.rejected[0].link)]
    cluster.lose(nodes[0])
    cluster.join("d0")
    cluster.run()
    assert len(cluster.rejected) == 1
    assert cluster.manager.network.ready


def test_what_a_lost_node_had_begins_anew() -> None:
    cluster, nodes = running()
    keys = submit_all(cluster, 5)
    for _ in range(12):
        cluster.step()
    cluster.lose(nodes[1])
    cluster.run()
    assert len(cluster.answers) < 5
    cluster.join("d1")
    cluster.run()
    check_answers(cluster, keys)
    assert cluster.order == keys


def test_what_the_hub_keeps_is_not_made_again() -> None:
    cluster, nodes = running(options=ManagerOptions(keep=ALL_TENSORS))
    nodes[2].is_mute = True
    cluster.submit(1, "r")
    cluster.run()
    cluster.lose(nodes[2])
    cluster.join("d2")
    cluster.run()
    check_answers(cluster, [(1, "r")])
    assert cluster.executions == [(1, "p0"), (1, "p1"), (1, "p2")]


def test_a_request_that_loses_its_device_again_and_again_fails_and_names_the_last_cause() -> None:
    cluster, nodes = running(options=ManagerOptions(max_attempts=3, no_planner="no"))
    nodes[1].is_mute = True
    cluster.submit(1, "r")
    cluster.run()
    for _ in range(3):
        assert not cluster.failures
        cluster.lose(next(node for node in cluster.nodes.values() if node.device == "d1"))
        node = cluster.join("d1")
        while not cluster.manager.network.ready and cluster.step():
            pass
        node.is_mute = True
        cluster.run()
    failure = cluster.failures[1, "r"]
    assert failure.code == "E_UNAVAILABLE"
    assert "3 times" in failure.message
    assert "device `d1` was lost: killed" in failure.message
    assert not cluster.store


def test_a_silent_node_is_cut_off_and_its_work_begins_anew() -> None:
    cluster, nodes = running()
    nodes[1].is_mute = True
    cluster.submit(1, "r")
    cluster.wait(1.0)
    assert not cluster.disconnected
    cluster.wait(1.0)
    assert cluster.disconnected == [nodes[1].link]
    cluster.join("d1")
    cluster.run()
    check_answers(cluster, [(1, "r")])


def test_a_node_that_computes_one_item_for_too_long_is_cut_off() -> None:
    cluster, nodes = running()
    for _ in range(30):
        cluster.manager.network.timings.add("p1", "d1", 0.9)
    nodes[1].fails["p1"] = ("", "")
    nodes[1].is_mute = True
    cluster.submit(1, "r")
    cluster.run()
    setup = nodes[1].setup
    assert setup is not None
    for seconds in (4.0, 8.5, 9.5):
        cluster.now_s += 0.25
        cluster.happen(NodeTold(nodes[1].link, Beat(setup.number, ("p1",), running=(Running(1, 1, "p1", seconds),))))
        cluster.tick(0.0)
        assert (nodes[1].link in cluster.disconnected) == (seconds > 9.0)


def test_work_that_does_not_come_on_although_its_devices_are_idle_begins_anew() -> None:
    cluster, nodes = running(options=ManagerOptions(stall_s=3.0))
    taken = nodes[1].take
    nodes[1].take = lambda *_: None  # type: ignore[method-assign]
    cluster.submit(1, "r")
    cluster.wait(2.5)
    nodes[1].take = taken  # type: ignore[method-assign]
    assert (1, "r") not in cluster.answers
    cluster.wait(1.5)
    check_answers(cluster, [(1, "r")])
    assert not cluster.disconnected


def test_devices_that_do_not_reach_each_other_send_over_the_hub() -> None:
    cluster, nodes = running()
    setup = nodes[0].setup
    assert setup is not None
    assert [target.device for target in setup.targets] == ["d1"]
    nodes[0].unreachable = ("d1",)
    cluster.wait(1.5)
    assert setup is nodes[0].setup, "it may be back in a moment"
    cluster.wait(1.5)
    setup = nodes[0].setup
    assert setup.targets == ()
    keys = submit_all(cluster, 4)
    cluster.run()
    check_answers(cluster, keys)
    assert cluster.manager.hub.passed_nbytes == 4 * NBYTES


def test_a_node_without_endpoints_gets_its_tensors_over_the_hub() -> None:
    cluster = ToyCluster(chain(), ALONE)
    cluster.join("d0")
    cluster.join("d1", endpoints=())
    cluster.join("d2", endpoints=("ipc:///x", "tcp://2"), host="there")
    cluster.run()
    setups = {node.device: node.setup for node in cluster.nodes.values()}
    targets = {name: [(t.device, t.endpoints) for t in s.targets] for name, s in setups.items() if s is not None}
    assert targets == {"d0": [], "d1": [("d2", ("tcp://2",))], "d2": []}
    keys = submit_all(cluster, 3)
    cluster.run()
    check_answers(cluster, keys)


def test_a_draining_node_finishes_its_work_and_is_let_go() -> None:
    other = Variant(name="small", placement={"p0": "d0", "p1": "d0", "p2": "d2"})
    cluster, nodes = running(chain(others=(other,)))
    keys = submit_all(cluster, 6)
    for _ in range(10):
        cluster.step()
    cluster.tell(nodes[1], Drain())
    keys += [(2, f"r{n}") for n in range(6)]
    for key in keys[6:]:
        cluster.submit(*key)
    cluster.run()
    check_answers(cluster, keys)
    assert nodes[1].is_dismissed
    assert cluster.manager.watch.status(0.0, queued=0, running=0).retried == 0
    assert [course.variant for course in cluster.manager.network.ready] == ["small"]


def test_a_partition_that_a_node_cannot_load_is_placed_elsewhere() -> None:
    other = Variant(name="small", placement={"p0": "d0", "p1": "d0", "p2": "d2"})
    cluster = ToyCluster(chain(others=(other,)), ALONE)
    nodes = [cluster.join(device) for device in ("d0", "d1", "d2")]
    nodes[1].is_mute = True
    cluster.run()
    setup = nodes[1].setup
    assert setup is not None
    cluster.happen(NodeTold(nodes[1].link, Beat(setup.number, (), refused=(("p1", "not enough memory"),))))
    nodes[1].is_mute = False
    cluster.run()
    assert [course.variant for course in cluster.manager.network.ready] == ["small"]


def test_replicas_take_requests_by_their_measured_speed() -> None:
    plan = chain(replicas={"p1": ("d3",)}, seconds=dict.fromkeys(PLACED, 0.01))
    cluster, _ = running(plan, ALONE, "d0", "d1", "d2", "d3")
    network = cluster.manager.network
    assert len(network.ready) == 2
    for _ in range(50):
        network.timings.add("p1", "d1", 0.3)
        network.timings.add("p1", "d3", 0.1)
    cluster.tick()
    cluster.run()
    submit_all(cluster, 8)
    share = {course.whole.placement["p1"]: course.in_flight for course in network.ready}
    assert share["d3"] == 6
    assert share["d1"] == 2


def test_answers_of_replicas_come_in_the_order_of_the_requests() -> None:
    plan = chain(replicas={"p1": ("d3",)})
    for seed in range(10):
        cluster = ToyCluster(plan, ALONE, seed=seed)
        for device in ("d0", "d1", "d2", "d3"):
            cluster.join(device)
        cluster.run()
        keys = submit_all(cluster, 10)
        cluster.run()
        assert cluster.order == keys


# Requests.


def test_more_requests_than_there_is_room_for_are_sent_back() -> None:
    cluster, _ = running(options=ManagerOptions(max_requests=8, no_planner="no"))
    keys = submit_all(cluster, 7, client=1)
    assert cluster.failures[1, "r6"].code == "E_BUSY", "a client has at most three quarters"
    assert cluster.failures[1, "r6"].retry_after_s is not None
    keys[6:] = submit_all(cluster, 2, client=2)
    cluster.submit(3, "r")
    assert cluster.failures[3, "r"].code == "E_BUSY"
    cluster.run()
    check_answers(cluster, keys)
    cluster.submit(3, "again")
    cluster.run()
    check_answers(cluster, [(3, "again")])


def test_the_hub_never_has_more_bytes_than_its_buffer() -> None:
    options = ManagerOptions(buffer_nbytes=10 * NBYTES, keep=ALL_TENSORS, no_planner="no")
    cluster, _ = running(options=options)
    for number in range(40):
        cluster.submit(number % 4, f"r{number}")
        cluster.step()
    cluster.run()
    assert cluster.answers
    assert {failure.code for failure in cluster.failures.values()} == {"E_BUSY"}
    assert cluster.most_held_nbytes <= 10 * NBYTES


@pytest.mark.parametrize("seed", range(5))
def test_the_hub_has_room_for_what_devices_cannot_send_each_other(seed: int) -> None:
    parts = [*((f"p{name}", ("x",), (name,)) for name in "abc"), ("all", ("a", "b", "c"), ("y",))]
    placement = {"pa": "d0", "pb": "d0", "pc": "d0", "all": "d1"}
    options = replace(ALONE, buffer_nbytes=6 * NBYTES)
    cluster = ToyCluster(plan_of(parts, placement, outputs=("y",)), options, seed=seed)
    keys = [key for client in range(6) for key in submit_all(cluster, 1, client)]
    cluster.join("d0")
    cluster.join("d1", endpoints=())
    cluster.run()
    accepted = [key for key in keys if key not in cluster.failures]
    assert accepted
    check_answers(cluster, accepted)
    assert cluster.most_held_nbytes <= 6 * NBYTES, "that was not known when the requests came"


def test_clients_take_turns() -> None:
    cluster, nodes = running()
    nodes[0].is_mute = True
    submit_all(cluster, 20, client=1)
    submit_all(cluster, 2, client=2)
    begun = [request.client for request in cluster.manager.queue if request.begun_s is not None]
    assert begun == [1] * 8, "what the window takes at once"
    nodes[0].is_mute = False
    for node in nodes:
        cluster.lose(node)
    for device in PLACED.values():
        cluster.join(device)
    cluster.run()
    place = [client for client, _ in cluster.order].index(2)
    assert place <= 10


def test_as_many_requests_are_under_way_as_keep_every_stage_busy() -> None:
    cluster, nodes = running()
    nodes[0].is_mute = True
    submit_all(cluster, 20)
    assert len(cluster.manager.leases) == 8, "two for each of three devices, one for each of two links"


def test_a_devices_buffer_bounds_what_is_under_way() -> None:
    cluster = ToyCluster(chain(), ALONE)
    cluster.join("d0", memory=BASE_NBYTES + 5 * NBYTES)
    cluster.join("d1")
    cluster.join("d2")
    cluster.run()
    next(node for node in cluster.nodes.values() if node.device == "d0").is_mute = True
    submit_all(cluster, 20)
    assert len(cluster.manager.leases) == 2, "of two tensors each"


def test_what_a_device_has_not_been_told_the_end_of_takes_its_room() -> None:
    cluster = ToyCluster(chain(), ALONE)
    small = cluster.join("d0", memory=BASE_NBYTES + 5 * NBYTES)
    cluster.join("d1")
    cluster.join("d2")
    cluster.run()
    keys = submit_all(cluster, 20)
    while cluster.step():
        assert len(small.tensors) <= 2, "it stores what it was not told to forget"
    check_answers(cluster, keys)
    cluster.tick()
    cluster.run()
    assert not small.tensors


def test_what_is_on_its_way_to_a_slow_node_bounds_what_is_sent_there_although_nobody_wants_it() -> None:
    cluster = ToyCluster(chain(), ALONE)
    nodes = [cluster.join("d0", memory=BASE_NBYTES + 10 * NBYTES), cluster.join("d1"), cluster.join("d2")]
    cluster.run()
    for number in range(50):
        cluster.submit(1, f"r{number}")
        cluster.cancel(1, f"r{number}")
    slow = cluster.manager.network.members.by_link(nodes[0].link)
    assert slow is not None
    assert slow.stale_nbytes <= 10 * NBYTES
    cluster.run()
    assert slow.stale_nbytes == 0
    assert not slow.sending
    cluster.submit(1, "r")
    cluster.run()
    check_answers(cluster, [(1, "r")])


def test_of_thousands_of_requests_nothing_remains() -> None:
    cluster, nodes = running()
    for number in range(1500):
        cluster.submit(number % 3, f"r{number}", timeout_s=3600.0)
        cluster.run()
        if number % 50 == 0:
            cluster.tick()
    cluster.tick()
    cluster.run()
    manager = cluster.manager
    assert len(cluster.answers) == 1500
    assert len(manager.queue) == len(manager.hub) == len(manager.leases) == len(cluster.store) == 0
    assert manager.queue.clients == 0
    assert manager.deadlines <= 64
    for node in manager.network.members:
        assert not node.ended
        assert not node.sending
    assert all(not node.tensors for node in nodes)


def test_a_request_fails_when_its_time_is_over() -> None:
    cluster = ToyCluster(chain(), ALONE)
    cluster.submit(1, "late", timeout_s=1.0)
    cluster.submit(1, "patient", timeout_s=50.0)
    assert cluster.manager.wake_at_s <= 1.0
    cluster.wait(1.25)
    assert cluster.failures[1, "late"].code == "E_DEADLINE"
    for device in PLACED.values():
        cluster.join(device)
    cluster.run()
    check_answers(cluster, [(1, "patient")])


def test_a_running_request_whose_time_is_over_is_taken_from_its_devices() -> None:
    cluster, nodes = running()
    nodes[1].fails["p1"] = ("", "")
    nodes[1].is_mute = True
    cluster.submit(1, "late", timeout_s=0.5)
    cluster.run()
    cluster.wait(0.75)
    assert cluster.failures[1, "late"].code == "E_DEADLINE"
    assert not len(cluster.manager.leases)
    assert not nodes[0].tensors


def test_a_cancelled_request_is_taken_from_its_devices_and_holds_up_nobody() -> None:
    cluster, nodes = running()
    nodes[1].is_mute = True
    keys = submit_all(cluster, 3)
    cluster.run()
    cluster.cancel(*keys[0])
    cluster.cancel(*keys[0])
    nodes[1].is_mute = False
    cluster.lose(nodes[1])
    cluster.join("d1")
    cluster.run()
    assert cluster.order == keys[1:]
    assert keys[0] not in cluster.failures
    assert not cluster.store


def test_a_client_that_is_gone_leaves_nothing_behind() -> None:
    cluster, _ = running()
    submit_all(cluster, 9)
    for _ in range(20):
        cluster.step()
    cluster.happen(LinkLost(1, "gone"))
    cluster.run()
    cluster.tick()
    cluster.run()
    assert not len(cluster.manager.queue)
    assert not cluster.store


def test_a_request_that_failed_for_good_fails_with_its_reason() -> None:
    cluster, nodes = running()
    nodes[1].fails["p1"] = ("E_EXECUTION", "a shape does not fit")
    cluster.submit(1, "r")
    cluster.run()
    assert cluster.failures[1, "r"].code == "E_EXECUTION"
    assert cluster.failures[1, "r"].message == "a shape does not fit"
    assert not cluster.store
    assert cluster.executions == [(1, "p0")]


def test_a_failure_of_the_device_alone_is_tried_elsewhere() -> None:
    cluster, nodes = running(chain(replicas={"p1": ("d3",)}), ALONE, "d0", "d1", "d2", "d3")
    nodes[1].fails["p1"] = ("E_MEMORY", "not enough memory")
    for _ in range(40):
        cluster.manager.network.timings.add("p1", "d1", 0.001)
    cluster.tick()
    keys = submit_all(cluster, 4)
    nodes[3].beat()
    cluster.run()
    for key in keys:
        failure = cluster.failures.get(key)
        assert key in cluster.answers or (failure is not None and "not enough memory" in failure.message)


def test_an_answer_is_said_once_however_often_its_parts_come() -> None:
    cluster, nodes = running()
    cluster.submit(1, "r")
    while (1, "y") not in cluster.store:
        assert cluster.step()
    for epoch in (0, 1, 2):
        cluster.happen(TensorCame(nodes[2].link, 1, epoch, "y", NBYTES))
        cluster.happen(NodeTold(nodes[2].link, Finished(1, epoch, "p2", 0.0, 0.0, NBYTES)))
    cluster.run()
    assert cluster.order == [(1, "r")]


def test_a_node_cannot_send_what_another_one_makes() -> None:
    cluster, nodes = running()
    nodes[2].is_mute = True
    cluster.submit(1, "r")
    cluster.run()
    cluster.happen(TensorCame(nodes[0].link, 1, 1, "y", NBYTES))
    cluster.happen(TensorCame(nodes[2].link, 1, 1, "b", NBYTES))
    cluster.happen(NodeTold(nodes[0].link, Finished(1, 1, "p2", 0.0, 0.0, NBYTES)))
    assert not cluster.answers
    assert cluster.manager.leases.get(1, 1) is not None


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    cluster, _ = running(options=ManagerOptions(answer_wait_s=5.0, no_planner="no"))
    cluster.takes_answers = False
    submit_all(cluster, 3)
    cluster.run()
    assert len(cluster.manager.queue) == 3
    cluster.wait(4.0)
    assert not cluster.disconnected
    cluster.wait(2.0)
    assert cluster.disconnected == [1]
    assert not len(cluster.manager.queue)
    assert not cluster.store


# Batches.


def test_requests_that_are_alike_are_computed_together() -> None:
    cluster, _ = running(chain(shape=("n", 5)), ManagerOptions(batch_rows=4, no_planner="no"))
    for number in range(8):
        cluster.submit(number % 2, f"r{number}", batch="a", rows=1)
    cluster.submit(1, "other", batch="b", rows=1)
    cluster.tick(0.01)
    cluster.run()
    check_answers(cluster, [(number % 2, f"r{number}") for number in range(8)] + [(1, "other")])
    assert len(cluster.executions) == 9, "three pieces of work through three partitions"


def test_a_request_waits_only_so_long_for_others() -> None:
    cluster, _ = running(options=ManagerOptions(batch_rows=4, batch_wait_s=0.005, no_planner="no"))
    cluster.tick()
    cluster.submit(1, "r", batch="a", rows=1)
    assert not len(cluster.manager.leases)
    assert cluster.manager.wake_at_s == pytest.approx(cluster.now_s + 0.005)
    cluster.tick(0.005)
    assert len(cluster.manager.leases) == 1
    cluster.run()
    check_answers(cluster, [(1, "r")])


def test_when_a_batch_fails_each_of_its_requests_is_tried_alone() -> None:
    cluster, nodes = running(options=ManagerOptions(batch_rows=3, no_planner="no"))
    nodes[1].fails["p1"] = ("E_EXECUTION", "one of them is bad")
    for name in ("a", "b", "c"):
        cluster.submit(1, name, batch="same", rows=1)
    while not any(part == "p0" for _, part in cluster.executions):
        assert cluster.step()
    while cluster.manager.leases.find(4) is not None:
        assert cluster.step()
    nodes[1].fails.clear()
    cluster.run()
    check_answers(cluster, [(1, "a"), (1, "b"), (1, "c")])


# Leaving.


def test_a_manager_told_to_leave_finishes_what_it_accepted() -> None:
    cluster, _ = running()
    keys = submit_all(cluster, 5)
    cluster.happen(ToldToLeave())
    assert not cluster.has_left
    cluster.submit(1, "late")
    assert cluster.failures[1, "late"].code == "E_LEAVING"
    cluster.run()
    check_answers(cluster, keys)
    assert cluster.has_left


def test_a_joining_nodes_state_is_told_by_what_it_has_to_do() -> None:
    cluster = ToyCluster(chain(), ALONE)
    for device in PLACED.values():
        cluster.join(device)
    members = {node.device: node for node in cluster.manager.network.members}
    assert {node.state for node in members.values()} == {NodeState.LOADING}
    cluster.run()
    assert {node.state for node in members.values()} == {NodeState.SERVING}
