"""Which English text each translation is of: `python tests/translated.py LANGUAGE ...` writes it to translated.json.

The record has two short hashes for each text, of the English and of its translation, so a translation whose English
text has changed since is stale. Recording lists all that it adds, and refuses a translation that stayed as it was while
its English text changed; with --unchanged it records those too.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

FILE = Path(__file__).with_name("translated.json")
LOCALES = Path(__file__).resolve().parent.parent / "locales"
Keys = tuple[str, ...]


def locale(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(texts: dict | str, path: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """(keys from the outside in, text) of every text in nested dictionaries."""
    if isinstance(texts, str):
        yield path, texts
        return
    for key, value in texts.items():
        yield from leaves(value, (*path, key))


def translations(language: str) -> Iterator[tuple[Keys, str, str]]:
    """(keys, English text, translation) of every text. KeyError: the language lacks one."""
    translated = dict(leaves(locale(language)))
    for path, english in leaves(locale("en")):
        yield path, english, translated[path]


def short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:6]


def recorded() -> dict[str, list[str]]:
    """{language: hash of the English text + hash of its translation, sorted}."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def stale(language: str) -> dict[tuple[str, str], str]:
    """{(English text, translation): where it stands first} of the pairs that nobody has recorded."""
    known = recorded().get(language, [])
    found = {}
    for path, english, text in translations(language):
        if short(english) + short(text) not in known:
            found.setdefault((english, text), ".".join(path))
    return found


def record(language: str, unchanged: bool) -> None:
    record = recorded()
    known = {pair[6:] for pair in record.get(language, [])}
    added = stale(language)
    for (english, text), place in added.items():
        print(f"{place}\n  en: {english}\n  {language}: {text}")
    left = [place for (_, text), place in added.items() if short(text) in known]
    if left and not unchanged:
        sys.exit(f"Nothing recorded. Translations of another English text: {', '.join(left)}. --unchanged takes them.")
    record[language] = sorted({short(english) + short(text) for _, english, text in translations(language)})
    FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"Recorded {language} in {FILE}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("language", nargs="+")
    parser.add_argument("--unchanged", action="store_true", help="those that stayed as they were are right")
    given = parser.parse_args()
    for language in given.language:
        record(language, given.unchanged)
