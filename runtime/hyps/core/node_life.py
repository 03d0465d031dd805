"""Where a node is in its life, and everything that can move it on."""

from collections.abc import Mapping
from enum import Enum


class NodeLife(Enum):
    """Where a node is in its life."""

    JOINING = "joining"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class NodeTrigger(Enum):
    """What moves it on."""

    MANAGER_FOUND = "manager found"
    MANAGER_LOST = "manager lost"
    SET_UP = "set up"
    ALL_SETTLED = "all settled"
    TOLD_TO_DRAIN = "told to drain"
    WORK_IS_OVER = "work is over"


_Life, _Trigger = NodeLife, NodeTrigger

NODE_TRANSITIONS: Mapping[tuple[NodeLife, NodeTrigger], NodeLife] = {
    (_Life.JOINING, _Trigger.MANAGER_FOUND): _Life.LOADING,
    (_Life.JOINING, _Trigger.MANAGER_LOST): _Life.JOINING,
    (_Life.JOINING, _Trigger.TOLD_TO_DRAIN): _Life.GONE,
    (_Life.LOADING, _Trigger.SET_UP): _Life.LOADING,
    (_Life.LOADING, _Trigger.ALL_SETTLED): _Life.SERVING,
    (_Life.LOADING, _Trigger.MANAGER_LOST): _Life.JOINING,
    (_Life.LOADING, _Trigger.TOLD_TO_DRAIN): _Life.DRAINING,
    (_Life.LOADING, _Trigger.WORK_IS_OVER): _Life.GONE,
    (_Life.SERVING, _Trigger.SET_UP): _Life.LOADING,
    (_Life.SERVING, _Trigger.MANAGER_LOST): _Life.JOINING,
    (_Life.SERVING, _Trigger.TOLD_TO_DRAIN): _Life.DRAINING,
    (_Life.SERVING, _Trigger.WORK_IS_OVER): _Life.GONE,
    (_Life.DRAINING, _Trigger.SET_UP): _Life.DRAINING,
    (_Life.DRAINING, _Trigger.TOLD_TO_DRAIN): _Life.DRAINING,
    (_Life.DRAINING, _Trigger.MANAGER_LOST): _Life.GONE,
    (_Life.DRAINING, _Trigger.WORK_IS_OVER): _Life.GONE,
}
"""Every change of a node's state; what is not in here cannot happen, and nothing happens to one that is gone."""
