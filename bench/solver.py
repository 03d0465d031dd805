"""How long one minimum cut takes, building and solving told apart, and its ratio to other libraries on equal networks.

Two kinds of random graphs with the fan-out of networks (a layer uses one to three of the eight before it):

* layered: the server is two to eight times faster and tensors shrink towards the end, as in a classifier, so that the
  best cut lies behind the middle;
* contrary: every layer has a random preference and every tensor a random price, so that everything pulls against
  everything. No model looks like this; it is the hardest that was found.

The rivals get the very same arcs: networkx (preflow_push, its fastest) the same integers, scipy (Dinic) integers of 32
bits, because it has no others. All values are compared. The solvers use one thread: seconds of the processor are those
of the wall on an idle machine, and are what is compared where others use the machine.

    python bench/solver.py
"""

import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click
import networkx as nx
import numpy as np
import scipy.sparse
from networkx.algorithms.flow import preflow_push
from scipy.sparse.csgraph import maximum_flow

from common import machine, write_results
from hyps.terminal import table
from hyps_passes.searches.min_cut import (
    REQUEST,
    Capacities,
    Floats,
    Flows,
    Network,
    cut_network,
    minimum_cut,
    tier_cut,
    whole_capacities,
)

KINDS = ("layered", "contrary")
SIZES = ((1_000, 2), (10_000, 2), (100_000, 2), (1_000, 3), (10_000, 3))
"""Layers and tiers."""

REPEATS = 9
NETWORKX_REPEATS = {1_000: 5, 10_000: 3, 100_000: 0}
"""With 100,000 layers one solution took minutes."""

SCIPY_REPEATS = 3
WINDOW = 8
SOURCE, SINK = 0, 1


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Graphs of each kind and size.")
def main(seeds: int) -> None:
    """Measure every graph and print the medians."""
    results = []
    for kind in KINDS:
        for layers, tiers in SIZES:
            for seed in range(seeds):
                results.append(measure(kind, layers, tiers, seed, with_rivals=seed == 0 and tiers == 2))
                print(show(results[-1:]).splitlines()[-1], flush=True)
    print(show(results))
    solvers = {name: version(name) for name in ("ortools", "networkx", "scipy")}
    write_results("solver", {"machine": machine(), "solvers": solvers, "results": results})


def measure(kind: str, layers: int, tiers: int, seed: int, *, with_rivals: bool) -> dict[str, Any]:
    """Return the samples of one graph."""
    seconds, flows = random_graph(np.random.default_rng([seed, layers]), kind, layers, tiers)
    floor = seconds.min(axis=1, keepdims=True)
    network, build = timed(lambda: cut_network(seconds - floor, flows), REPEATS)
    capacities, convert = timed(lambda: whole_capacities(network), REPEATS)
    (flow, _), solve = timed(lambda: minimum_cut(network, capacities), REPEATS)
    cut = tier_cut(seconds, flows)
    assert cut is not None
    return {
        "kind": kind,
        "layers": layers,
        "tiers": tiers,
        "seed": seed,
        "arcs": len(network.tails),
        "on_tier": np.bincount(cut.tiers, minlength=tiers).tolist(),
        "ortools": {"build": build, "convert": convert, "solve": solve},
        **(rivals(network, capacities, flow, NETWORKX_REPEATS[layers]) if with_rivals else {}),
    }


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, list[float]]]:
    """Return what the call returns, and its seconds: of the wall and of the processor."""
    samples: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        samples["wall_s"].append(time.perf_counter() - wall)
        samples["cpu_s"].append(time.process_time() - cpu)
    return found, samples


def random_graph(rng: np.random.Generator, kind: str, layers: int, tiers: int) -> tuple[Floats, Flows]:
    """Return the costs of a graph; the first layer uses the request's input."""
    consumers: list[list[int]] = [[0], *([] for _ in range(layers))]
    for layer in range(1, layers):
        used = rng.integers(max(0, layer - WINDOW), layer, rng.choice([1, 1, 1, 2, 2, 3]))
        for producer in set(used.tolist()):
            consumers[producer + 1].append(layer)
    hops = rng.lognormal(0, 1, (layers + 1, tiers - 1)) * 1e-3
    if kind == "contrary":
        seconds = rng.lognormal(0, 1, (layers, tiers)) * 1e-3
    else:
        speed = np.cumprod([1, *(1 / rng.uniform(2, 8, tiers - 1))])
        seconds = rng.lognormal(0, 1, (layers, 1)) * 1e-3 * speed * rng.lognormal(0, 0.3, (layers, tiers))
        hops *= layers * np.exp(-6 * np.arange(layers + 1) / layers)[:, np.newaxis]
    return seconds, Flows.of([REQUEST, *range(layers)], consumers, hops)


def rivals(network: Network, capacities: Capacities, flow: int, networkx_repeats: int) -> dict[str, Any]:
    """Return the samples of the other libraries, which must find the same value."""
    cost = math.ldexp(flow, -capacities.exponent)
    scale, matrix = as_scipy(network, cost)
    found, solve = timed(lambda: maximum_flow(matrix, SOURCE, SINK, method="dinic").flow_value, SCIPY_REPEATS)
    assert math.isclose(found / scale, cost, rel_tol=1e-3)
    samples = {"scipy": {"solve": solve}}
    if networkx_repeats:
        graph, build = timed(lambda: as_networkx(network, capacities), 1)
        cut = timed(lambda: nx.minimum_cut(graph, SOURCE, SINK, flow_func=preflow_push), networkx_repeats)
        assert cut[0][0] == flow
        samples["networkx"] = {"build": build, "solve": cut[1]}
    return samples


def as_networkx(network: Network, capacities: Capacities) -> "nx.DiGraph[int]":
    """Return the network with parallel arcs made one; an arc without a capacity is an infinite one."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    arcs = zip(network.tails.tolist(), network.heads.tolist(), capacities.integers.tolist(), strict=True)
    for tail, head, capacity in arcs:
        if capacity == capacities.infinite:
            graph.add_edge(tail, head)
        elif not graph.has_edge(tail, head):
            graph.add_edge(tail, head, capacity=capacity)
        elif "capacity" in graph[tail][head]:
            graph[tail][head]["capacity"] += capacity
    return graph


def as_scipy(network: Network, cost: float) -> tuple[float, scipy.sparse.csr_array]:
    """Return how many units are one second, and the network in them: what costs more than the best cut is infinite."""
    infinite = 2**30
    scale = infinite / 4 / cost
    whole = np.rint(np.minimum(network.capacities * scale, infinite)).astype(np.int32)
    shape = (network.nodes, network.nodes)
    return scale, scipy.sparse.csr_array((whole, (network.tails, network.heads)), shape=shape)


def show(results: list[dict[str, Any]]) -> str:
    """Return medians as text."""
    rows = []
    for result in results:
        own = result["ortools"]
        cells = [
            milliseconds(own["build"], "cpu_s"),
            *(milliseconds(own["solve"], clock) for clock in ("cpu_s", "wall_s")),
        ]
        for rival in ("networkx", "scipy"):
            cells += [ratio(result[rival]["solve"], own["solve"]) if rival in result else ""]
        split = "/".join(map(str, result["on_tier"]))
        rows.append((result["kind"], f"{result['layers']:,}", str(result["arcs"]), split, *cells))
    heads = ("kind", "layers", "arcs", "on tier", "build ms", "solve ms", "wall ms", "networkx", "scipy")
    return table(rows, heads, "lrrrrrrrr")


def milliseconds(samples: dict[str, list[float]], clock: str) -> str:
    """Return a median."""
    return f"{statistics.median(samples[clock]) * 1e3:.1f}"


def ratio(samples: dict[str, list[float]], own: dict[str, list[float]]) -> str:
    """Return how many times the median of `own` the others take, in seconds of the processor."""
    return f"{statistics.median(samples['cpu_s']) / statistics.median(own['cpu_s']):.1f}x"


if __name__ == "__main__":
    main()
