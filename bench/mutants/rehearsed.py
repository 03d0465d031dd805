"""Faults in what speaks over links and in clusters: what rehearsals with faults drawn from seeds are there to find."""

from mutants.fault import Fault, test_files

_TALK = "runtime/hyps/core/conversation.py"
_LINKS = test_files("property/test_rehearsal_links")
_NODE = "runtime/hyps/core/node_state.py"
_ITEMS = "runtime/hyps/core/node_items.py"
_HOLDINGS = "runtime/hyps/core/holdings.py"
_MANAGER = "runtime/hyps/core/manager_state.py"
_DESK = "runtime/hyps/core/dispatching.py"
_QUEUE = "runtime/hyps/core/request_queue.py"
_LEASES = "runtime/hyps/core/leases.py"
_NETWORK = "runtime/hyps/core/network.py"
_BOOK = "runtime/hyps/core/course_book.py"
_COURSES = "runtime/hyps/core/courses.py"
_PLACING = "runtime/hyps/core/placing.py"
_CLUSTER = test_files("property/test_rehearsal")
_CLUSTER_OR_PLACING = test_files("runtime/core/test_placing property/test_rehearsal")
_CLUSTER_OR_NODE = test_files("runtime/core/test_node_state property/test_rehearsal")

FAULTS = (
    Fault(
        "packets-taken-out-of-turn",
        _TALK,
        "        if packet.sequence != self.heard + 1:\n",
        "        if packet.sequence <= self.heard:\n",
        "a packet whose predecessor was lost is taken",
        _LINKS,
    ),
    Fault(
        "repeated-packets-taken",
        _TALK,
        "        if packet.sequence != self.heard + 1:\n",
        "        if packet.sequence > self.heard + 1:\n",
        "a packet that came twice is taken twice",
        _LINKS,
    ),
    Fault(
        "acknowledged-before-heard",
        _TALK,
        "        while self._acked < heard:\n",
        "        while self._flying and self._acked <= heard:\n",
        "a packet is forgotten although the other side has not heard it",
        _LINKS,
    ),
    Fault(
        "nothing-again-on-a-new-connection",
        _TALK,
        "        self._gap_told = -1\n        self._rewind()\n",
        "        self._gap_told = -1\n",
        "what a broken connection lost is sent again only after a long wait",
        _LINKS,
    ),
    Fault(
        "never-again-after-silence",
        _TALK,
        "                self.pace.restart()\n                self._rewind()\n",
        "                self.pace.restart()\n",
        "a last packet that is lost is never sent again",
        _LINKS,
    ),
    Fault(
        "taken-with-its-first-packet",
        _TALK,
        "            if packet.is_last:\n",
        "            if packet.sizes:\n",
        "a message counts as taken when its first packet came",
        _LINKS,
    ),
    Fault(
        "more-than-was-granted",
        _TALK,
        "fresh is None or fresh.end_nbytes > self._may_send_nbytes or not",
        "fresh is None or not",
        "a sender does not heed the receiver's room",
        _LINKS,
    ),
    Fault(
        "lanes-share-a-message",
        _TALK,
        "        incoming = self._incoming.get(packet.lane)\n",
        "        incoming = next(iter(self._incoming.values()), None)\n",
        "a piece of an urgent message is put into another one",
        _LINKS,
    ),
    Fault(
        "grants-shrink",
        _TALK,
        "        if granted > self._may_send_nbytes:\n            self._may_send_nbytes = granted\n",
        "        self._may_send_nbytes = granted\n",
        "news that come late take back what was granted",
        _LINKS,
    ),
    Fault(
        "late-tensors-of-ended-requests",
        _NODE,
        "event.epoch <= self._retired.get(event.request, 0):\n            return []",
        "event.epoch < 0:\n            return []",
        "a tensor that comes after its request ended is stored for ever",
        _CLUSTER,
    ),
    Fault(
        "an-old-epoch-goes-on",
        _NODE,
        "        if request is not None and request.epoch < event.epoch:\n"
        "            steps, request = self._drop(request), None\n",
        "        if request is not None and request.epoch < event.epoch and not request.held:\n"
        "            steps, request = self._drop(request), None\n",
        "a request that began anew is mixed with what is left of its earlier attempt",
        _CLUSTER_OR_NODE,
    ),
    Fault(
        "second-arrivals-count",
        _NODE,
        "request.course != event.course or event.tensor in request.arrived:",
        "request.course != event.course:",
        "a tensor that came twice makes a partition ready without its other input",
        _CLUSTER_OR_NODE,
    ),
    Fault(
        "forgotten-before-delivered",
        _ITEMS,
        "        return len(self.consumers.get(tensor, ())) + len(self.targets.get(tensor, ()))\n",
        "        return max(1, len(self.consumers.get(tensor, ())))\n",
        "a tensor is dropped when it was computed with, though others have not got it",
        _CLUSTER,
    ),
    Fault(
        "nothing-again-to-a-neighbour-that-is-back",
        _NODE,
        "        return [send for _, send in self._sendings.values() if send.device == event.device]\n",
        "        return []\n",
        "what was under way to a device when it was lost is never sent again",
        _CLUSTER,
    ),
    Fault(
        "results-for-a-lost-manager",
        _NODE,
        "        steps = [step for request in list(self._requests.values()) for step in self._drop(request)]\n"
        "        self._retired.clear()\n",
        "        steps: list[NodeInstruction] = []\n        self._retired.clear()\n",
        "requests of a manager that is gone are taken for those of the next one",
        _CLUSTER,
    ),
    Fault(
        "runs-more-than-it-may",
        _NODE,
        "        while len(self._runs) < self._max_executing and not",
        "        while len(self._runs) <= self._max_executing and not",
        "a node computes more at once than it said",
        _CLUSTER,
    ),
    Fault(
        "a-failed-item-is-not-told",
        _NODE,
        "        return [*forgets, Tell(ItemFailed(request.number, request.epoch, partition, code, reason, hint))]\n",
        "        return forgets\n",
        "nobody learns that a work item has no result",
        _CLUSTER,
    ),
    Fault(
        "no-beat-when-something-changed",
        _NODE,
        "        if not self._has_changed and now_s - self._told_s < self._beat_s:\n",
        "        if now_s - self._told_s < 10 * self._beat_s:\n",
        "a node tells of itself so rarely that it is taken for lost",
        _CLUSTER,
    ),
    Fault(
        "an-unload-is-forgotten",
        _HOLDINGS,
        "        return [Unload(held.id, held.share.digest)] if held.is_runnable else []\n",
        "        return []\n",
        "a partition that no course has stays in memory",
        _CLUSTER,
    ),
    Fault(
        "two-partitions-in-turn",
        _HOLDINGS,
        "        steps = [] if self._in_turn is None else self._unload(self._in_turn)\n",
        "        steps: list[NodeInstruction] = []\n",
        "a partition that is loaded for its turn stays when the next one comes",
        _CLUSTER,
    ),
    Fault(
        "accepted-twice",
        _MANAGER,
        "        if self.queue.find(event.client, event.name) is not None:\n"
        "            return  # it is answered when the first of that name is\n",
        "",
        "a request that is sent twice is accepted twice",
        _CLUSTER,
    ),
    Fault(
        "a-full-manager-takes-more",
        _MANAGER,
        "        is_full = len(self.queue) >= limit or not self.hub.has_room(nbytes + results)\n",
        "        is_full = len(self.queue) >= limit\n",
        "the hub takes more bytes than it has room for",
        _CLUSTER,
    ),
    Fault(
        "answers-keep-their-tensors",
        _DESK,
        "        self.drop(work.number, self.hub.close(work.number))\n\n    def drop(",
        "        self.hub.close(work.number)\n\n    def drop(",
        "what an answered request held is never dropped",
        _CLUSTER,
    ),
    Fault(
        "lost-work-is-not-begun-anew",
        _DESK,
        "        for course, cause in broken:\n"
        "            for work in self.leases.on_course(course):\n"
        "                self.lose(work, cause)\n",
        "        for course, cause in broken:\n"
        "            for work in self.leases.on_course(course)[1:]:\n"
        "                self.lose(work, cause)\n",
        "a request that was computed on a lost device waits for ever",
        _CLUSTER,
    ),
    Fault(
        "the-epoch-stays",
        _LEASES,
        "        work.epoch += 1\n",
        "        work.epoch = max(1, work.epoch)\n",
        "what an earlier attempt left behind is taken for the new one's",
        _CLUSTER,
    ),
    Fault(
        "late-requests-wait-on",
        _MANAGER,
        "        while self._deadlines and self._deadlines[0][0] <= self._desk.now_s:\n",
        "        while len(self._deadlines) > 3 and self._deadlines[0][0] <= self._desk.now_s:\n",
        "a request whose time is over waits on",
        _CLUSTER,
    ),
    Fault(
        "nodes-are-not-told-of-the-end",
        _DESK,
        "node.end_work(work.number, work.epoch, course.",
        "node.end_work(work.number, work.epoch if is_urgent else 0, course.",
        "nodes keep what they have of requests that were answered",
        _CLUSTER,
    ),
    Fault(
        "cancelled-work-goes-on",
        _DESK,
        "        if work is not None and not work.live_requests:\n            self._give_up(work)\n",
        "        if work is not None and not work.live_requests and work.course is None:\n"
        "            self._give_up(work)\n",
        "a request that nobody waits for any more keeps its tensors and devices",
        _CLUSTER,
    ),
    Fault(
        "silent-nodes-stay",
        _MANAGER,
        "            self._cut_off(node, reason)\n        for node, part in self.network.overdue():\n",
        "            _ = reason\n        for node, part in self.network.overdue():\n",
        "a node that is silent is waited for",
        _CLUSTER,
    ),
    Fault(
        "stuck-nodes-stay",
        _MANAGER,
        '            self._cut_off(node, f"it has computed partition `{printable(part, 60)}` for too long")\n',
        "            _ = node, part\n",
        "a node whose computing hangs is waited for",
        _CLUSTER,
    ),
    Fault(
        "parts-of-another-batch",
        _DESK,
        "                first = sum(r.rows for r in work.requests[: work.requests.index(request)])\n",
        "                first = sum(r.rows for r in work.live_requests[: work.live_requests.index(request)])\n",
        "where a request of a batch was cancelled the others get each other's rows",
        _CLUSTER,
    ),
    Fault(
        "begun-anew-with-what-was-sent",
        _DESK,
        "            sends = sends_to_begin(self._flow, course.whole, held, parts)\n",
        "            sends = sends_to_begin(self._flow, course.whole, held[:1], parts)\n",
        "a second attempt does not get all tensors that the hub has",
        _CLUSTER,
    ),
    Fault(
        "answers-out-of-order",
        _QUEUE,
        "            if request.state is not RequestState.FINISHED:\n"
        "                break\n"
        "            ready.append(request)\n",
        "            if request.state is RequestState.FINISHED:\n                ready.append(request)\n",
        "a client's answers come in the order in which they were computed",
        _CLUSTER,
    ),
    Fault(
        "work-on-a-course-that-is-not-loaded",
        _NETWORK,
        "            if course.state is CourseState.PREPARING and course.is_loaded():\n",
        "            if course.state is CourseState.PREPARING:\n",
        "requests go to devices that have not loaded their partitions",
        _CLUSTER,
    ),
    Fault(
        "courses-of-lost-nodes-stay",
        _NETWORK,
        "        for course in self.book.on_node(node):\n"
        "            self._break(course, cause)\n"
        "        self.members.remove(node)\n",
        "        for course in self.book.on_node(node)[:1]:\n"
        "            self._break(course, cause)\n"
        "        self.members.remove(node)\n",
        "requests go to a device that is gone",
        _CLUSTER,
    ),
    Fault(
        "two-nodes-of-one-name",
        _NETWORK,
        "        if self.members.by_device(join.device) is not None:\n",
        "        if self.members.by_device(join.device) is not None and not join.device:\n",
        "a second node of the same name takes the place of the first",
        _CLUSTER,
    ),
    Fault(
        "retired-courses-are-dropped-at-once",
        _NETWORK,
        "        if course.state is CourseState.RETIRING and not course.in_flight:\n"
        "            course.move(CourseTrigger.LAST_ENDED)\n",
        "        if course.state is CourseState.RETIRING:\n            course.move(CourseTrigger.LAST_ENDED)\n",
        "a placement that is replaced is taken from under the requests on it",
        _CLUSTER,
    ),
    Fault(
        "setups-keep-their-number",
        _BOOK,
        "        return Setup(node.setup_number + 1, plan if ids",
        "        return Setup(max(1, node.setup_number), plan if ids",
        "nodes take a changed setup for the one they have",
        _CLUSTER,
    ),
    Fault(
        "more-in-flight-than-fits",
        _BOOK,
        "        if self.in_flight >= self.window:\n            return False\n",
        "",
        "a course takes any number of requests",
        _CLUSTER,
    ),
    Fault(
        "no-room-for-tensors",
        _BOOK,
        "        return all(node.has_room(self.nbytes_on(device, scale)) for device, node in self.nodes.items())\n",
        "        return scale >= 0\n",
        "a node gets more tensors than it has memory for",
        _CLUSTER,
    ),
    Fault(
        "what-is-in-turn-makes-no-way",
        "runtime/hyps/core/holdings.py",
        "        return self.weight_nbytes() + held_nbytes + running + own <= limit_nbytes\n",
        "        return self.weight_nbytes() + held_nbytes + running + own >= 0\n",
        "a kept partition runs beside one that was loaded for its turn, over the node's memory",
        test_files("runtime/core/test_node_memory"),
    ),
    Fault(
        "ended-requests-take-no-room",
        "runtime/hyps/core/membership.py",
        "        self.ended_nbytes += nbytes\n",
        "        self.ended_nbytes += 0 * nbytes\n",
        "a node gets more before it is told what it may forget",
        test_files("runtime/core/test_manager_state"),
    ),
    Fault(
        "a-tensor-without-its-way",
        _COURSES,
        "        others = [device for device in readers[name] if device != source]\n",
        "        others = [device for device in readers[name] if device != source][:1]\n",
        "a tensor that two other devices read goes to one of them",
        _CLUSTER,
    ),
    Fault(
        "outputs-stay-on-devices",
        _COURSES,
        "    to_hub = {name for name in flow.outputs if name in flow.producer}\n",
        "    to_hub = {name for name in flow.outputs if name in flow.producer and not readers[name]}\n",
        "an output that another partition reads as well does not come to the hub",
        _CLUSTER,
    ),
    Fault(
        "refusals-are-forgotten",
        _PLACING,
        "            return node is not None and node.is_staying and part not in self._refused.get(node.link, ())\n",
        "            return node is not None and node.is_staying\n",
        "a partition is placed again and again where it cannot be loaded",
        _CLUSTER,
    ),
    Fault(
        "draining-nodes-get-work",
        _PLACING,
        "            return node is not None and node.is_staying and part not in self._refused.get(node.link, ())\n",
        "            return node is not None and part not in self._refused.get(node.link, ())\n",
        "a node that wants to leave is given more to do",
        _CLUSTER,
    ),
    Fault(
        "tensors-made-here-are-refused",
        _NODE,
        "        uses = path.uses(name) if is_made else len(path.consumers.get(name, ()))\n",
        "        elsewhere = [task for task in request.states if name in path.inputs[task]]\n"
        "        uses = path.uses(name) if is_made else len(elsewhere) * (request.epoch == 1)\n",
        "what the hub has of an earlier attempt is not computed with",
        _CLUSTER,
    ),
    Fault(
        "a-node-that-hangs-comes-back",
        _NODE,
        "        return sum(run.is_foreign for run in self._runs.values()) >= self._max_executing\n",
        "        return sum(run.is_foreign for run in self._runs.values()) > self._max_executing\n",
        "a node whose executor hangs is given work again",
        _CLUSTER,
    ),
    Fault(
        "a-search-that-broke-is-the-last",
        _PLACING,
        '        self._retry_s = float("inf") if is_final else now_s + pause_s\n',
        '        self._retry_s = float("inf") if is_final or pause_s else now_s\n',
        "a search that failed by accident is never begun again",
        _CLUSTER_OR_PLACING,
    ),
)
