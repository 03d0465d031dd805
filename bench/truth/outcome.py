"""What comes out of a case: errors, regret, and the figures that explain them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyps.terminal import table
from hyps_passes.graph import CutGraph
from truth.clusters import Pair
from truth.job import Way
from truth.measuring import Samples
from truth.plans import Model
from truth.predicting import Prediction

PRODUCT, REQUESTS = "product", "with requests"
"""The two ways to predict: as the product does, and with the measured cost of a request added."""

Head = tuple[int, ...]
"""The layers that the device runs."""


@dataclass(slots=True)
class Forecast:
    """What one way of predicting said, session by session."""

    cuts: dict[str, list[Prediction]] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    def add(self, predictions: Mapping[str, Prediction]) -> None:
        """Take the predictions of one more session."""
        for name, prediction in predictions.items():
            self.cuts.setdefault(name, []).append(prediction)

    def latency_s(self, name: str) -> float:
        """Return the mean prediction for a cut."""
        return statistics.fmean(prediction.latency_s for prediction in self.cuts[name])


@dataclass(slots=True)
class Case:
    """One model on one cluster, as far as it has been seen."""

    model: Model
    pair: Pair
    heads: dict[str, Head]
    forecasts: dict[str, Forecast] = field(default_factory=lambda: {PRODUCT: Forecast(), REQUESTS: Forecast()})
    samples: dict[str, Samples] = field(default_factory=dict)
    ways: list[Way] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """Of the machine, when each session began."""

    def median_s(self, name: str) -> float:
        """Return the median of the measured seconds of a cut."""
        return statistics.median(self.samples[name].whole_us) / 1e6


def result(case: Case) -> dict[str, Any]:
    """Return what is kept of a case."""
    best = min(case.heads, key=case.median_s)
    return {
        "model": case.model.name,
        "pair": case.pair.name,
        "cpu_fraction": case.pair.cpu_fraction,
        "bytes_per_s": case.pair.bytes_per_s,
        "layers": len(case.model.graph.layers),
        "borders": len(case.model.graph.legal_borders()),
        "load": case.loads,
        "ways": [
            {
                "up_bytes_per_s": way.link.up_bytes_per_s,
                "down_bytes_per_s": way.link.down_bytes_per_s,
                "latency_s": way.link.latency_s,
                "message_s": way.link.message_s,
                "request_s": way.request_s,
            }
            for way in case.ways
        ],
        "best": best,
        "forecasts": {name: _judged(case, forecast, best) for name, forecast in case.forecasts.items()},
        "cuts": {name: _cut(case, name) for name in case.heads},
    }


def _judged(case: Case, forecast: Forecast, best: str) -> dict[str, Any]:
    errors = [abs(forecast.latency_s(name) / case.median_s(name) - 1) for name in case.heads]
    return {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "chosen": forecast.chosen,
        "regret": statistics.fmean(case.median_s(name) for name in forecast.chosen) / case.median_s(best) - 1,
    }


def _cut(case: Case, name: str) -> dict[str, Any]:
    samples, told = case.samples[name], case.forecasts[PRODUCT].cuts[name]
    return {
        "nbytes": _sent_nbytes(case.model.graph, case.heads[name]),
        "predicted_s": {way: forecast.latency_s(name) for way, forecast in case.forecasts.items()},
        "predicted_head_s": statistics.fmean(p.head_s for p in told),
        "predicted_tail_s": statistics.fmean(p.tail_s for p in told),
        "median_s": case.median_s(name),
        "p95_s": sorted(samples.whole_us)[int(0.95 * (len(samples.whole_us) - 1))] / 1e6,
        "median_head_s": statistics.median(samples.head_us) / 1e6,
        "samples_us": samples.whole_us,
        "head_us": samples.head_us,
    }


def _sent_nbytes(graph: CutGraph, head: Head) -> int:
    """Return the bytes that go up: what crosses, and the model's inputs that the tail reads."""
    inside = set(head)
    sent = [v for v in graph.values if (v.producer in inside or v.producer < 0) and set(v.consumers) - inside]
    return sum(value.nbytes or 0 for value in sent)


def show(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table: how it was predicted, errors, what was chosen, what was best."""
    rows = [
        (
            r["model"],
            r["pair"],
            len(r["cuts"]),
            way,
            f"{told['median_error']:.1%}",
            f"{told['worst_error']:.1%}",
            max(told["chosen"], key=told["chosen"].count),
            r["best"],
            f"{r['cuts'][r['best']]['median_s'] * 1e3:.1f}",
            f"{told['regret']:.1%}",
        )
        for r in results
        for way, told in r["forecasts"].items()
    ]
    headers = ("model", "cluster", "cuts", "predicted", "error", "worst", "chosen", "best", "best ms", "regret")
    return table(rows, headers, "llrlrrllrr", 120)
