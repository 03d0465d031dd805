"""The content of everything that a check depends on as one digest: by it, workflows store the cache of checks.

python -m hyps_compiler.checking.content BUDGET MODEL|FOLDER...
"""

import hashlib
import sys
from pathlib import Path

from hyps.errors import HypsError
from hyps_compiler.checking.budget import read_budget
from hyps_compiler.checking.keys import result_key, software_digest
from hyps_compiler.checking.targets import find_targets


def main() -> None:
    """Print the digest for the budget `argv[1]` and the models `argv[2:]`."""
    try:
        print(content_digest(Path(sys.argv[1]), sys.argv[2:]))  # noqa: T201  # what the command is for
    except (HypsError, OSError) as error:
        sys.exit(f"error: {error}")


def content_digest(budget: Path, models: list[str]) -> str:
    """Return a digest that changes with the models, how they are compiled, and the software; limits do not count.

    Raises:
        HypsError: the budget is wrong, or there is no such model.
        OSError: a file cannot be read.
    """
    rules, software = read_budget(budget), software_digest()
    keys = [
        result_key(target, rules.rule(rules.name_of(target.model, target.path)).options, software, trust=False)
        for target in find_targets(models)
    ]
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


if __name__ == "__main__":
    main()
