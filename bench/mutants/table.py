"""Every fault that is tried; to add one, add a row to the list of its kind."""

from mutants import (
    cutting,
    dividing,
    emission,
    execution,
    placing,
    rehearsed,
    slicing,
    staging,
    streaming,
    verification,
)

FAULTS = (
    *cutting.FAULTS,
    *slicing.FAULTS,
    *dividing.FAULTS,
    *staging.FAULTS,
    *streaming.FAULTS,
    *emission.FAULTS,
    *verification.FAULTS,
    *execution.FAULTS,
    *placing.FAULTS,
    *rehearsed.FAULTS,
)
