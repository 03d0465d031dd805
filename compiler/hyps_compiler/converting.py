"""What a user says of a model that is no ONNX file, wherever one is taken."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Converting:
    """How a model of another framework is to be converted on the way."""

    trust: bool = False
    """Whether code in it may be run."""
    modules: tuple[str, ...] = ()
    """Python modules that register its own classes."""


UNTRUSTED = Converting()
"""Where nothing is said."""
