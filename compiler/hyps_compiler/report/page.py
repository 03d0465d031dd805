"""The page: one HTML file that needs nothing else, and may fetch nothing."""

import base64
import hashlib
from html import escape
from importlib import resources

import msgspec

from hyps_compiler.report.document import Report

STYLES = ("page.css",)
SCRIPTS = ("units.js", "dom.js", "chart.js", "graph.js", "sections.js", "main.js")
"""In the order in which they need each other; the page has them as one."""

SECTIONS = {
    "summary": "Summary",
    "partitions": "Partitions",
    "layers": "Layers",
    "splits": "Split points",
    "memory": "Memory",
    "schedule": "Schedule",
    "load_map": "Load",
}
"""The sections by their names in the page's code, as the navigation names them."""

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page_of(report: Report) -> bytes:
    """Return the bytes of the HTML file; equal reports give equal bytes."""
    style = "\n".join(_asset(name) for name in STYLES)
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escape(report.title)
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in SECTIONS.items())
    sections = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2></section>'
        for key, name in SECTIONS.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title} · HyPS report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<div class="bar">
<div class="name"><p class="brand">HyPS report</p><h1>{title}</h1><p class="sub">{escape(report.subtitle)}</p></div>
<button type="button" id="theme" aria-pressed="false">Dark</button>
</div>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
<noscript><p class="missing">The charts on this page are drawn by its own script, which is switched off.</p></noscript>
{sections}
</main>
<footer><p>Made by <code>hypsc report</code>. This page loads nothing from anywhere.</p></footer>
<script type="application/json" id="data">{_embedded(report)}</script>
<script>{script}</script>
</body>
</html>
""".encode()


def _embedded(report: Report) -> str:
    """Return the report as JSON in which no name can end the element that holds it."""
    text = msgspec.json.encode(report).decode()
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def _asset(name: str) -> str:
    return resources.files("hyps_compiler.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
