"""``python -m lab.builds``: build what the lab needs, without starting anything."""

from __future__ import annotations

import sys
from dataclasses import asdict

from lab.builds import BuildError, ConsoleReport, build_all


def main() -> int:
    """Build everything and print where it is; 1 after a failure."""
    try:
        with ConsoleReport() as report:
            artefacts = build_all(report)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in asdict(artefacts).items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
