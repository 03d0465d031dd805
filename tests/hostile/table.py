"""All the cases, by name."""

from hostile.bombs import BOMBS, DATA, FUNCTIONS, NAMES, TENSORS
from hostile.models import EXTERNAL, GRAPHS, NOT_MODELS
from hostile.options import OPTIONS, OUTPUT
from hostile.plans import PLANS, REQUESTS, VERIFICATIONS

CASES = {
    f"{group}: {case.id}": case
    for group, cases in {
        "file": NOT_MODELS,
        "data": [*EXTERNAL, *DATA],
        "graph": [*GRAPHS, *NAMES],
        "bomb": BOMBS,
        "function": FUNCTIONS,
        "tensor": TENSORS,
        "option": OPTIONS,
        "output": OUTPUT,
        "plan": PLANS,
        "request": REQUESTS,
        "verify": VERIFICATIONS,
    }.items()
    for case in cases
}

_SLOW = (
    "fifo|random|indented web page|zip|hdf5|ort|empty folder|hidden parent|folder link|fifo data|"
    "no number|negative offset|sparse constant|no maker|long weight|overflowing dims|memory -5MB|"
    "cut unknown, plain|cut comma|optimize|input no number|inputs missing|two models|here by force|"
    "a device|occupied by others|plan is a file|no plan.json|plan.json no text|plan.json list|"
    "plan.json digits|other format|absolute path|worker altered|worker future|inspect altered|npz empty|"
    "truncated npz|answer a folder|nothing to run|samples|other model|"
    "web page|text|unknown domain|opset 9999|function|absolute|no location|input unknown|input rank|"
    "long name|here|root"
).split("|")
"""Left to the slow tests: others are much like them."""

_QUICK = {
    "bomb": "expand|computed shape|expand, verified|many constants|doubling list|nested|guessed sizes|"
    "doubling 24|doubling 200|nested 60|over 2 GiB",
    "function": "itself|undefined|twice",
    "tensor": "listed short|sparse outside",
    "data": "in memory|checksum|training|two places",
    "graph": "huge name",
    "plan": "plan.json mark|plan.json 100 MB|path nul|partition fifo|input huge",
}
"""Of what is tried for each kind of file, what the default run tries."""

_SAMPLED = {
    f"{group}: {case.id}"
    for group, cases in {
        "bomb": BOMBS,
        "function": FUNCTIONS,
        "tensor": TENSORS,
        "data": DATA,
        "graph": NAMES,
        "plan": [case for case in PLANS if case.id.startswith(("path ", "partition f", "partition s", "partition h"))],
    }.items()
    for case in cases
}

SLOW = {name for name in CASES if name.split(": ", 1)[1] in _SLOW}
SLOW |= _SAMPLED - {f"{group}: {case}" for group, cases in _QUICK.items() for case in cases.split("|")}
