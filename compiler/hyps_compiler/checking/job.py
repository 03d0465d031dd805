"""What the parent asks of the process that examines a model, and how it is run."""

from pathlib import Path

import msgspec
from msgspec import Struct

from hyps.adapters.guard import limit_seconds
from hyps.errors import HypsError, OutputError, printable
from hyps_compiler.checking.facts import Outcome, problem_of
from hyps_compiler.checking.kept import read_record, write_record
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.children import run_child
from hyps_compiler.output import OutputFolder, scratch_folder


class ModelJob(Struct, frozen=True, kw_only=True):
    """Convert, compile and verify a model."""

    model: str
    options: CompileOptions
    output: str = ""
    """Where the plan is to lie; empty: it is not kept."""
    force: bool = False
    trust: bool = False
    """Whether code in the model's file may be run."""


class BaselineJob(Struct, frozen=True, kw_only=True):
    """Read the plan to compare with."""

    folder: str


Job = ModelJob | BaselineJob


def run_job(job: Job) -> Outcome:
    """Return what comes of a job, done in a process of its own; if that dies, the outcome says of what.

    A plan that is to be kept is made in a folder of this process beside its place, so that none is left half made,
    however the other one ends.
    """
    try:
        if isinstance(job, BaselineJob) or not job.output:
            return _run(job)
        place = Path(job.output)
        _make_parents(place)
        with OutputFolder(place, force=job.force or read_record(place) is not None) as output:
            made = output.scratch("made") / place.name
            outcome = _run(msgspec.structs.replace(job, output=str(made), force=False))
            if outcome.facts is not None:
                write_record(made, outcome.facts.plan.digest, job.options)
                output.publish(made)
            return outcome
    except HypsError as error:
        return Outcome(problem=problem_of(error))


def _make_parents(place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        shown = printable(str(place.parent))
        raise OutputError(f"the folder `{shown}` cannot be made: {error.strerror}", "give another with `-o`") from error


def _run(job: Job) -> Outcome:
    """Return what the process tells.

    Raises:
        HypsError: it died.
    """
    with scratch_folder() as scratch:
        asked, told = scratch / "job.json", scratch / "outcome.json"
        asked.write_bytes(msgspec.json.encode(job))
        limit_seconds(job.options.timeout_s if isinstance(job, ModelJob) else None)  # of what the child calls
        module = "examine" if isinstance(job, ModelJob) else "baseline"
        run_child(f"hyps_compiler.checking.{module}", [str(asked), str(told)], scratch, "checking the model")
        return msgspec.json.decode(told.read_bytes(), type=Outcome)
