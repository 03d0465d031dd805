"""What goes between the bench and its programs on the device."""

import msgspec
from msgspec import Struct

from hyps.formats.profiles import LinkProfile


class Part(Struct, frozen=True):
    """One cut: either side may be missing."""

    head: str | None
    """Folder of the plan that the device runs."""
    tail: str | None
    """Address of the worker that has the rest."""


class Job(Struct, frozen=True):
    """Everything to load."""

    model: str
    """Name of the reference model, for its inputs."""
    reference: str
    """The cut that runs whole on the device, which all must agree with."""
    parts: dict[str, Part]


def decode_job(data: bytes) -> Job:
    """Return the job that the bytes hold."""
    return msgspec.json.decode(data, type=Job)


def encode_job(job: Job) -> bytes:
    """Return the bytes of a job."""
    return msgspec.json.encode(job)


class Way(Struct, frozen=True):
    """The way from the device to the server."""

    link: LinkProfile
    request_s: float
    """What a request takes there and back beside the link and what is computed."""
