"""PyTorch's files on the child's side: exported programs, and modules that are exported or converted as they are.

Imports torch: for the child process only.
"""

from pathlib import Path

from hyps_compiler.convert import archives, programs, scripted
from hyps_compiler.convert.request import Made, Request


def run(request: Request) -> Made:
    """Convert as asked and leave model and references in the request's folder.

    Raises:
        ModelError: the source cannot be loaded or expressed in ONNX, was exported in training mode, or holds code.
        UsageError: an input to fix does not exist or has another rank; the shape of one is needed and not given.
    """
    if archives.content_of(Path(request.source)) == "exported":
        return programs.run(request)
    return scripted.run(request)
