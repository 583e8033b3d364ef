"""``python -m settings``: writes what is made from the fields, docs/configuration.schema.json and docs/configuration.md."""

from __future__ import annotations

import json
from pathlib import Path

from settings.reference import rewritten
from settings.schema import schema

DOCS = Path(__file__).resolve().parents[1] / "docs"


def contents() -> dict[Path, str]:
    """The files that are made from the fields, as they must be; of the page only the tables are made."""
    page = DOCS / "configuration.md"
    return {
        page: rewritten(page.read_text(encoding="utf-8")),
        DOCS / "configuration.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }


def main() -> None:
    """Write the files and say which of them have changed."""
    for file, text in contents().items():
        changed = not file.exists() or file.read_text(encoding="utf-8") != text
        file.write_text(text, encoding="utf-8")
        print(f"{file.relative_to(DOCS.parent)}: {'written anew' if changed else 'up to date'}")


if __name__ == "__main__":
    main()
