"""The thesis's experiments with VGG16 (chapter 4), on emulated devices: same questions, our figures, theirs beside.

Devices are three namespaces on a switch with 100 Mbit/s each, a quarter of a core and 1 GB as a Raspberry Pi 3B+ has;
the manager and whoever asks have a namespace of their own. In each round every variant has its turn, in a new order and
in fresh processes, with requests that do not count first; unsplit onnxruntime has its turn on such a device too.

    python thesis.py                                      # in bench/, as root
    python thesis.py --experiment devices --rounds 2      # one of them; results are added to those there are
"""

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import testbed
from common import RESULTS, load, machine, quantile, write_results
from fleet.plans import Model, Placement, layer_names, move_plan, read_model, write_plan
from fleet.running import MANAGER, Choices, Question, ask, fleet, make_question, run_whole
from hyps.formats.plan import Partition, Plan, decode_plan
from hyps.terminal import table
from testbed import SWITCH, Device, Layout, Machine, Wire

FC1 = "classifier.fc1"
CPU_FRACTION, PERIOD_S, MEMORY_BYTES = 0.25, 0.01, 1_000_000_000
SMALL_MEMORY_BYTES, LARGE_MEMORY_BYTES = 512_000_000, 3_000_000_000
BYTES_PER_S = 100e6 / 8
NAMES = ("one", "two", "three")
SLICES = (4, 8, 16, 25, 50)
THESIS_DEVICES = {1: (46.7344, 2.5832), 2: (42.8802, 2.1081), 3: (38.7523, 2.8913)}
"""Table 4.2: seconds of inference and of communication, on so many devices."""
WHOLE = "unsplit"
WARM_UP = 2
_DETAILED = ("fine", "cut-kinds")


@dataclass(slots=True)
class Variant:
    """One way to run the model, and what was measured of it."""

    folder: Path
    place: Placement
    options: tuple[str, ...] = ()
    """Of the manager."""
    latencies_s: list[float] = field(default_factory=list)
    runs_s: list[dict[str, float]] = field(default_factory=list)
    """Of each request: seconds that partitions computed."""
    sent_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds that each tensor was on its way from one device, in every request."""

    @property
    def plan(self) -> Plan:
        """The plan, as it is placed for this variant."""
        return decode_plan((self.folder / "plan.json").read_bytes())


@dataclass(frozen=True, slots=True)
class Bench:
    """What every experiment needs."""

    model: Model
    question: Question
    folder: Path
    rounds: int
    requests: int


def layout(memory_bytes: int) -> Layout:
    """Return three devices and the manager's machine, on a switch."""
    machines = {name: Machine(CPU_FRACTION, memory_bytes, period_s=PERIOD_S) for name in NAMES}
    wires = tuple(Wire(name, SWITCH, BYTES_PER_S) for name in (*NAMES, MANAGER))
    return Layout({**machines, MANAGER: Machine()}, wires)


def across_devices(bench: Bench, memory_bytes: int = MEMORY_BYTES) -> dict[str, Any]:
    """Table 4.2: V-partitions on 1, 2, 3 devices, all four slices of FC1 on one."""
    folder = sliced(bench, 4)
    places = {
        1: lambda part: NAMES[0],
        2: lambda part: NAMES[0] if is_first(part) else NAMES[1],
        3: lambda part: NAMES[0] if is_first(part) else NAMES[1] if part.shard else NAMES[2],
    }
    return result(bench, {f"V on {count}": Variant(folder, place) for count, place in places.items()}, memory_bytes)


def small_devices(bench: Bench) -> dict[str, Any]:
    """Table 4.2 on devices that are too small for the whole model, as the thesis's were."""
    return across_devices(bench, SMALL_MEMORY_BYTES)


def roomy_devices(bench: Bench) -> dict[str, Any]:
    """Table 4.2 on devices with memory to spare: what is left of it then."""
    return across_devices(bench, LARGE_MEMORY_BYTES)


def across_slices(bench: Bench) -> dict[str, Any]:
    """Figures 4.12 and 4.13: FC1's four slices on 1, 2, 3 devices, as table 4.3 spreads them."""
    folder = sliced(bench, 4)
    spread = {1: (1, 1, 1, 1), 2: (0, 0, 1, 1), 3: (0, 1, 1, 2)}

    def place(of_slices: Sequence[int]) -> Placement:
        return lambda part: NAMES[of_slices[part.shard.index] if part.shard else 0 if is_first(part) else 2]

    variants = {f"slices on {count}": Variant(folder, place(of_slices)) for count, of_slices in spread.items()}
    return result(bench, variants)


def slice_counts(bench: Bench) -> dict[str, Any]:
    """Figures 4.8 and 4.9: FC1 in 4 to 50 slices on a single device."""
    return result(bench, {f"{count} slices": Variant(sliced(bench, count), on_one) for count in SLICES})


def fine(bench: Bench) -> dict[str, Any]:
    """Figures 4.3 to 4.5: each layer a V-partition, all on one device, or every other one on the other of two.

    There feature maps go straight to the other device, or over the hub as in the thesis.
    """
    folder = bench.folder / "fine"
    write_plan(bench.model, folder, on_one, behind=whole_layers(bench.model))
    place = alternating(folder)
    variants = {
        "on one device": Variant(folder, on_one),
        "to and fro": Variant(folder, place),
        "to and fro over the hub": Variant(folder, place, ("--via-hub",)),
    }
    return result(bench, variants)


def cut_kinds(bench: Bench) -> dict[str, Any]:
    """Figures 4.6 and 4.7: V-partitions cut behind the convolutions before pooling layers, or behind those."""
    layers = whole_layers(bench.model)
    pools = [index for index, name in enumerate(layers) if name.split(".")[-1] == "pool"]
    dense = layers[-4:-1]
    kinds = {
        "behind convolutions": [layers[index - 1] for index in pools],
        "behind pooling": [layers[i] for i in pools],
    }
    variants = {}
    for kind, behind in kinds.items():
        folder = bench.folder / kind.replace(" ", "-")
        write_plan(bench.model, folder, on_one, behind=[*behind, *dense])
        variants[kind] = Variant(folder, alternating(folder))
    return result(bench, variants)


EXPERIMENTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "devices": across_devices,
    "small-devices": small_devices,
    "roomy-devices": roomy_devices,
    "slices-on-devices": across_slices,
    "slice-counts": slice_counts,
    "fine": fine,
    "cut-kinds": cut_kinds,
}


@click.command()
@click.option("--experiment", "names", multiple=True, type=click.Choice(list(EXPERIMENTS)), default=list(EXPERIMENTS))
@click.option("--rounds", default=3, show_default=True, help="Turns of every variant.")
@click.option("--requests", default=10, show_default=True, help="Requests in a turn.")
def main(names: tuple[str, ...], rounds: int, requests: int) -> None:
    """Run the experiments and print their tables."""
    path = RESULTS / "thesis.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="hyps-thesis-") as scratch:
        folder = Path(scratch)
        question = make_question("vgg16", folder)
        bench = Bench(read_model(question.model, folder), question, folder, rounds, requests)
        for name in names:
            results[name] = {"load": load(), **EXPERIMENTS[name](bench)}
            write_results("thesis", {"machine": machine(), "results": results})
            print(show(name, results[name]), file=sys.stderr)
    print("\n".join(show(name, told) for name, told in results.items()))


def result(bench: Bench, variants: Mapping[str, Variant], memory_bytes: int = MEMORY_BYTES) -> dict[str, Any]:
    """Measure the variants in turns and return their figures."""
    whole_s: list[float] = []
    order, shuffler = [*variants, WHOLE], random.Random(0)
    with testbed.build(layout(memory_bytes)) as devices:
        for _ in range(bench.rounds):
            shuffler.shuffle(order)
            for name in order:
                if name == WHOLE:
                    whole_s += run_whole(bench.question, bench.requests, devices[NAMES[0]])
                else:
                    take_turn(bench, variants[name], devices, memory_bytes)
    told = {name: figures(variant) for name, variant in variants.items()}
    return {"memory_bytes": memory_bytes, "cpu_fraction": CPU_FRACTION, "unsplit_s": whole_s, "variants": told}


def take_turn(bench: Bench, variant: Variant, devices: Mapping[str, Device], memory_bytes: int) -> None:
    """Start manager and nodes, ask, and add what was measured."""
    move_plan(variant.folder, variant.place)
    names = sorted(set(variant.plan.variants[0].placement.values()))
    trace = bench.folder / "trace.json"
    trace.unlink(missing_ok=True)
    choices = Choices(manager=("--trace", str(trace), *variant.options), node=("--memory", str(memory_bytes)))
    with fleet(variant.folder, names, devices, bench.folder / "fleet", choices) as made:
        asked = ask(made, bench.question, warm_up=WARM_UP, requests=bench.requests, reports=True)
    variant.latencies_s += asked.latencies_s
    variant.runs_s += asked.runs_s
    for tensor, seconds in read_sendings(trace).items():
        variant.sent_s.setdefault(tensor, []).extend(seconds[WARM_UP:])


def read_sendings(trace: Path) -> dict[str, list[float]]:
    """Return how long each tensor that a partition made was on its way to another device, request by request."""
    told = json.loads(trace.read_text())
    events = told["traceEvents"] if isinstance(told, dict) else told
    hubs = {event["pid"] for event in events if event["name"] == "process_name" and event["args"]["name"] == "hub"}
    seconds: dict[tuple[str, int], float] = {}
    for event in events:
        if event.get("cat") == "send" and event["ph"] == "X":
            key = (event["name"], event["args"]["work"])
            seconds[key] = seconds.get(key, 0.0) + event["dur"] / 1e6
    made = {event["name"] for event in events if event.get("cat") == "send" and event["pid"] not in hubs}
    sent: dict[str, list[float]] = {}
    for (name, _), took_s in sorted(seconds.items()):
        if name in made:
            sent.setdefault(name, []).append(took_s)
    return sent


def figures(variant: Variant) -> dict[str, Any]:
    """Return the raw numbers of a variant, and what its requests took beside computing."""
    move_plan(variant.folder, variant.place)
    plan = variant.plan
    placement = plan.variants[0].placement
    computing_s = [critical_s(plan, placement, runs) for runs in variant.runs_s]
    others_s = [whole - part for whole, part in zip(variant.latencies_s, computing_s, strict=True)]
    return {
        "latencies_s": variant.latencies_s,
        "communication_s": others_s,
        "partitions": {
            part.id: {
                "layers": [part.layers[0], part.layers[-1]],
                "device": placement[part.id],
                "sent_nbytes": sum(plan.tensors[name].nbytes or 0 for name in part.outputs),
                "run_s": [runs.get(part.id, 0.0) for runs in variant.runs_s],
                "sent_s": [
                    sum(took)
                    for took in zip(*(variant.sent_s[n] for n in part.outputs if n in variant.sent_s), strict=True)
                ],
            }
            for part in plan.partitions
        },
    }


def critical_s(plan: Plan, placement: Mapping[str, str], runs: Mapping[str, float]) -> float:
    """Return the seconds that computing adds to a request: slices on several devices run side by side."""
    in_turn = sum(runs.get(part.id, 0.0) for part in plan.partitions if part.shard is None)
    side_by_side: dict[str, float] = {}
    for part in plan.partitions:
        if part.shard is not None:
            device = placement[part.id]
            side_by_side[device] = side_by_side.get(device, 0.0) + runs.get(part.id, 0.0)
    return in_turn + max(side_by_side.values(), default=0.0)


def sliced(bench: Bench, count: int) -> Path:
    """Return a plan with FC1 in so many slices: convolutions, slices, and the rest."""
    folder = bench.folder / f"sliced-{count}"
    if not folder.exists():
        write_plan(bench.model, folder, on_one, slices=(FC1, count))
    return folder


def alternating(folder: Path) -> Placement:
    """Return the placement of each other partition on the other of two devices."""
    plan = decode_plan((folder / "plan.json").read_bytes())
    where = {part.id: NAMES[index % 2] for index, part in enumerate(plan.partitions)}
    return lambda part: where[part.id]


def on_one(part: Partition) -> str:
    """Everything on the first device."""
    del part
    return NAMES[0]


def is_first(part: Partition) -> bool:
    """Whether the partition holds the convolutions."""
    return part.shard is None and FC1 not in part.layers[0] and part.id == "p000"


def whole_layers(model: Model) -> list[str]:
    """Return the layers of VGG16 in their order, without what onnxruntime adds to reorder data."""
    return [name for name in layer_names(model) if "Reorder" not in name]


def show(name: str, told: Mapping[str, Any]) -> str:
    """Return an experiment's figures as a table."""
    first_s = statistics.median(next(iter(told["variants"].values()))["latencies_s"])
    rows = [row(kind, variant, first_s) for kind, variant in told["variants"].items()]
    if told["unsplit_s"]:
        rows.append(row(WHOLE, {"latencies_s": told["unsplit_s"], "communication_s": [], "partitions": {}}, first_s))
    headers = ("variant", "n", "median s", "p95 s", "std s", "ratio", "FC1 in slices s", "communication s", "std s")
    shown = f"\n{name} (load {told['load']})\n" + table(rows, headers, "lrrrrrrrr", 120)
    for kind, variant in told["variants"].items() if name in _DETAILED else ():
        shown += f"\n\n{kind}\n{show_partitions(variant['partitions'])}"
    return shown


def show_partitions(partitions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what each partition computes and sends as a table."""
    rows = [
        (
            name,
            part["layers"][-1],
            f"{1e3 * statistics.median(part['run_s']):.1f}",
            f"{part['sent_nbytes'] / 1e6:.3f}",
            f"{1e3 * statistics.median(part['sent_s']):.1f}" if part["sent_s"] else "",
            f"{1e3 * statistics.stdev(part['sent_s']):.1f}" if len(part["sent_s"]) > 1 else "",
        )
        for name, part in partitions.items()
    ]
    return table(rows, ("partition", "ends with", "computes ms", "sends MB", "communication ms", "std"), "llrrrr", 120)


def row(name: str, variant: Mapping[str, Any], first_s: float) -> tuple[object, ...]:
    """Return a line of the table."""
    latencies_s, others_s = variant["latencies_s"], variant["communication_s"]
    median_s, sliced_s = statistics.median(latencies_s), slices_s(variant["partitions"])
    figures = (f"{median_s:.4f}", f"{quantile(latencies_s, 0.95):.4f}", f"{statistics.stdev(latencies_s):.4f}")
    of_slices = f"{statistics.median(sliced_s):.4f}" if sliced_s else ""
    others = (f"{statistics.median(others_s):.4f}", f"{statistics.stdev(others_s):.4f}") if others_s else ("", "")
    return (name, len(latencies_s), *figures, f"{median_s / first_s:.3f}", of_slices, *others)


def slices_s(partitions: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Return, for every request, the seconds in which the busiest device computes its slices."""
    by_device: dict[str, list[list[float]]] = {}
    for part in partitions.values():
        if part["layers"][0].endswith("]"):
            by_device.setdefault(part["device"], []).append(part["run_s"])
    sums = [[sum(runs) for runs in zip(*of_device, strict=True)] for of_device in by_device.values()]
    return [max(of_request) for of_request in zip(*sums, strict=True)]


if __name__ == "__main__":
    main()
