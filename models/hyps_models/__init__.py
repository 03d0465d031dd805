"""Reference models by name, built here without any download: published architectures, seeded weights."""

from hyps_models.digits import digits_test
from hyps_models.zoo import MODELS, Reference, UnknownModelError, build, names, sample_inputs, save

__all__ = ["MODELS", "Reference", "UnknownModelError", "build", "digits_test", "names", "sample_inputs", "save"]
