"""A finished model and the weights beside it moved to where they were asked for, without ever mixing two models."""

import os
from contextlib import suppress
from pathlib import Path

from hyps.errors import OutputError, printable
from hyps_compiler.locations import locations_in


def data_name(destination: Path) -> str:
    """Return the name of the file beside a model that holds its weights where they are large."""
    return f"{destination.name}.data"


def move_into_place(model: Path, destination: Path) -> None:
    """Move a model, and the weights that lie beside it, to `destination`; what was there is replaced.

    Whenever this is ended, no model lies beside the weights of another: one that is replaced together with its weights
    is removed before they are. Weights that none needs any more are removed last.

    Raises:
        OutputError: the files cannot be written.
    """
    data = destination.with_name(data_name(destination))
    made = model.with_name(data.name)
    try:
        is_old_data = data.name in _data_of(destination)
        if made.exists():
            if is_old_data:
                destination.unlink()
            os.replace(made, data)
            is_old_data = False
        os.replace(model, destination)
        if is_old_data:
            data.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"`{printable(str(destination))}` cannot be written: {error.strerror}") from error


def _data_of(model: Path) -> list[str]:
    """Return the files with weights that an existing model names; none where there is no model."""
    with suppress(OSError):
        return locations_in(model)
    return []
