"""Real models of others, where their folder is there: `HYPS_SHARED`, or `shared` beside the repository."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("HYPS_SHARED", Path(__file__).parents[2] / "shared")) / "models"


def path_of(name: str) -> Path:
    """Return the file of a model."""
    return SHARED / f"{name}.onnx"


def make_inputs(name: str, seed: int = 0) -> dict[str, Any]:
    """Return a request of a model, as the folder's own `inputs.py` makes it."""
    spec = importlib.util.spec_from_file_location("shared_inputs", SHARED / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries = json.loads((SHARED / "manifest.json").read_text())["models"]
    made: dict[str, Any] = module.make_inputs(next(entry for entry in entries if entry["name"] == name), seed)
    return made
