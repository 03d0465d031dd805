"""Rules of operators that work on each element by itself."""

from collections.abc import Mapping

from hyps_passes.division.rule import Key, Rule

RULES: Mapping[Key, Rule] = {}
