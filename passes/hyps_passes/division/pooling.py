"""Rules of pooling, resizing and other operators that look at a neighbourhood."""

from collections.abc import Mapping

from hyps_passes.division.rule import Key, Rule

RULES: Mapping[Key, Rule] = {}
