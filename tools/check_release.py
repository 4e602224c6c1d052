"""What a release still lacks: python tools/check_release.py [pyproject.toml]

Publishing runs it first. The exit status is 1, with one line for each, if an address or PublisherId is not filled in or
CHANGELOG.md does not tell of the version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDERS = "OWNER", "PUBLISHER"


def lacking(project: str, changelog: str) -> list[str]:
    """One sentence for each thing that the texts of pyproject.toml and CHANGELOG.md lack."""
    settings = dict(re.findall(r'^([\w-]+) = "(.*)"$', project, re.MULTILINE))
    found = [
        f"{name}: '{value}' is not filled in. Replace {word}."
        for name, value in settings.items()
        for word in PLACEHOLDERS
        if re.search(rf"\b{word}\b", value)
    ]
    if not re.search(rf"^## {re.escape(settings['version'])}\b", changelog, re.MULTILINE):
        found.append(f"version: CHANGELOG.md has no section '## {settings['version']}'. Write one.")
    return found


def main() -> int:
    project = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "pyproject.toml"
    changelog = ROOT / "CHANGELOG.md"
    found = lacking(project.read_text(encoding="utf-8"), changelog.read_text(encoding="utf-8"))
    print("\n".join(found) or "Nothing is lacking.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
