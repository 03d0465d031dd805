"""A strict reader of Prometheus's text format 0.0.4, written from its description: whatever is not allowed fails."""

import math
import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_VALUE = re.compile(r"[+-]?Inf|NaN|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_KINDS = {"counter", "gauge", "histogram", "summary", "untyped"}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metric:
    """What one name tells; samples by suffix and labels."""

    kind: str
    about: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, suffix: str = "", **labels: str) -> float:
        """Return one sample."""
        return self.samples[suffix, tuple(sorted(labels.items()))]


def parse(text: str) -> dict[str, Metric]:
    """Return the metrics by name.

    Each has one HELP and one TYPE before its samples, which stand together; no series stands twice; counters end in
    `_total` and are no less than 0; histograms have rising buckets, the last of them `+Inf` and equal to the count.
    """
    assert text == "" or text.endswith("\n"), "the last line must end in a line feed"
    metrics: dict[str, Metric] = {}
    about: tuple[str, str] | None = None
    current = ""
    for line in text.split("\n")[:-1]:
        assert line, "an empty line"
        if line.startswith("# HELP "):
            name, _, words = line[7:].partition(" ")
            assert about is None
            assert not re.search(r"\\[^\\n]", words), f"a wrong escape: {line}"
            about = (name, words)
        elif line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            assert about is not None, line
            assert about[0] == name
            assert _NAME.fullmatch(name)
            assert kind in _KINDS
            assert name not in metrics, f"{name} stands twice"
            metrics[name] = Metric(kind, about[1])
            current, about = name, None
        else:
            assert not line.startswith("#")
            _take_sample(metrics[current], current, line)
    assert about is None
    for name, metric in metrics.items():
        _check(name, metric)
    return metrics


def _take_sample(metric: Metric, name: str, line: str) -> None:
    found = _NAME.match(line)
    assert found, line
    shown, rest = found.group(), line[found.end() :]
    allowed = ["_bucket", "_sum", "_count"] if metric.kind == "histogram" else [""]
    suffix = shown.removeprefix(name)
    assert shown.startswith(name), line
    assert suffix in allowed, line
    labels, rest = _labels(rest)
    assert rest.startswith(" "), line
    assert _VALUE.fullmatch(rest[1:]), line
    key = (suffix, labels)
    assert key not in metric.samples, f"a series stands twice: {line}"
    metric.samples[key] = float(rest[1:])


def _labels(text: str) -> tuple[Labels, str]:
    if not text.startswith("{"):
        return (), text
    text, found = text[1:], {}
    while True:
        name = _LABEL.match(text)
        assert name, text
        assert name.group() not in found, f"a label stands twice: {text}"
        assert not name.group().startswith("__")
        text = text[name.end() :]
        assert text.startswith('="'), text
        value, text = _quoted(text[2:])
        found[name.group()] = value
        if text.startswith("}"):
            return tuple(sorted(found.items())), text[1:]
        assert text.startswith(","), text
        text = text[1:]


def _quoted(text: str) -> tuple[str, str]:
    value, place = "", 0
    while text[place] != '"':
        if text[place] == "\\":
            place += 1
            value += {"\\": "\\", '"': '"', "n": "\n"}[text[place]]
        else:
            value += text[place]
        place += 1
    return value, text[place + 1 :]


def _check(name: str, metric: Metric) -> None:
    assert metric.samples, f"{name} has no samples"
    assert (metric.kind == "counter") == name.endswith("_total"), name
    if metric.kind == "counter":
        assert all(value >= 0 for value in metric.samples.values())
    if metric.kind != "histogram":
        return
    for suffix, labels in metric.samples:
        if suffix != "_count":
            continue
        buckets = [
            (float(dict(found)["le"].replace("Inf", "inf")), value)
            for (kind, found), value in metric.samples.items()
            if kind == "_bucket" and tuple(pair for pair in found if pair[0] != "le") == labels
        ]
        assert buckets == sorted(buckets), f"{name}: buckets do not rise"
        assert buckets[-1][0] == math.inf
        assert buckets[-1][1] == metric.samples["_count", labels]
        assert ("_sum", labels) in metric.samples
