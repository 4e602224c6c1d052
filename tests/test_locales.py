"""The pack's languages, held against the nodes and against the English texts that they translate."""

import re
from collections import defaultdict

import pytest

from test_docs import SCHEMAS, named_inputs
from translated import LOCALES, leaves, locale, stale, translations

LANGUAGES = {"en", "zh", "ja", "ko", "fr", "de", "es", "ru"}
THERE = {folder.name for folder in LOCALES.iterdir()}
EACH_LANGUAGE = pytest.mark.parametrize("language", sorted(THERE))
EACH_TRANSLATION = pytest.mark.parametrize("language", sorted(THERE - {"en"}))
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7a3]", "ru": r"[\u0400-\u04ff]"}
# triggers, code, parts of a file name, option values, paths and files, names in code, numbers
AS_THEY_ARE = r"<\|[^|]*\|>|`[^`]+`|%\w+%|(?<!\w)'[^']+'(?!\w)|(?:[\w-]*[./])+[\w-]+|\w+_\w+|\d+"


def english(schema) -> dict:
    """The node's entry in nodeDefs.json, in its own words."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {key: {"name": name, "tooltip": given.tooltip} for key, name, given in named_inputs(schema)},
        "outputs": {
            str(i): {"name": given.display_name, "tooltip": given.tooltip} for i, given in enumerate(schema.outputs)
        },
    }


def shape(texts: dict | str) -> dict | None:
    """The keys of nested dictionaries without their texts."""
    return {key: shape(value) for key, value in texts.items()} if isinstance(texts, dict) else None


def test_every_language_is_there():
    assert THERE == LANGUAGES


def test_english_locale_says_what_the_nodes_say():
    assert locale("en") == {schema.node_id: english(schema) for schema in SCHEMAS}


@EACH_LANGUAGE
def test_locales_name_exactly_the_nodes_inputs_and_outputs(language):
    texts = locale(language)
    assert shape(texts) == {schema.node_id: shape(english(schema)) for schema in SCHEMAS}
    assert not [path for path, text in leaves(texts) if not text.strip()]
    # the front end compiles names and descriptions as messages, in which these characters act; tooltips stay text
    assert not [path for path, text in leaves(texts) if path[-1] != "tooltip" and re.search(r"[|@{}]", text)]


@EACH_TRANSLATION
def test_sentences_are_in_their_language(language):
    letters = re.compile(SCRIPTS.get(language, r"\w"))
    for path, said, text in translations(language):
        if path[-1] in ("tooltip", "description"):
            assert text != said and letters.search(text), path


@EACH_TRANSLATION
def test_translations_are_of_the_present_english_texts(language):
    assert not stale(language), f"translate what changed, then run: python tests/translated.py {language}"


def names(language: str) -> dict[str, set[str]]:
    """{name in English: its names in the language}, of the nodes, and of the inputs whose names stand out in a text."""
    found = defaultdict(set)
    for path, said, text in translations(language):
        if path[-1] == "display_name" or path[-1] == "name" and "_" in said:
            found[without_pack(said)].add(without_pack(text))
    return found


def without_pack(name: str) -> str:
    """Texts call Load Face Analysis (MM-Diff) by its first words."""
    return re.sub(r"\s*[(\uff08]MM-Diff[)\uff09]$", "", name)


@EACH_TRANSLATION
def test_what_stands_for_itself_and_what_has_a_name_keep_it(language):
    called = names(language)
    longest_first = sorted(called, key=len, reverse=True)
    mention = re.compile("|".join([*(rf"\b{re.escape(name)}\b" for name in longest_first), AS_THEY_ARE]))
    for path, said, text in translations(language):
        if path[-1] not in ("tooltip", "description"):
            continue
        for found in mention.findall(said):
            wanted = called.get(found, {found.strip("'`")})
            assert any(name in text for name in wanted), f"{'.'.join(path)} lacks {found} ({', '.join(wanted)})"
