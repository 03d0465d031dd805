"""What is wrong as workflow commands of GitHub Actions: from the JSON of a check, for the action alone.

python -m hyps_compiler.checking.annotations REPORT.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyps_compiler.checking.targets import ZOO


def main() -> None:
    """Print an `::error` for each sentence in the report `argv[1]`."""
    report = json.loads(Path(sys.argv[1]).read_bytes())
    sys.stdout.writelines(f"{line}\n" for line in annotations(report))


def annotations(report: dict[str, Any]) -> Iterator[str]:
    """Yield a workflow command for everything that is not as it should be; whatever is in a name stays in it."""
    if "error" in report:
        yield f"::error title=hypsc check::{escape_data(report['error']['message'])}"
        return
    for model in report["models"]:
        name = model["model"]
        file = report["budget"] if name.startswith(ZOO) else name
        for verdict in model["verdicts"]:
            if not verdict["is_kept"]:
                title = escape_property(f"hypsc check: {verdict['title']}")
                yield f"::error file={escape_property(file)},title={title}::{escape_data(verdict['message'])}"


def escape_data(text: str) -> str:
    """Return text as the message of a workflow command, which ends with its line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Return text as a property of a workflow command, of which commas and colons are the punctuation."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


if __name__ == "__main__":
    main()
