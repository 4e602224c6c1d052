"""Triggers with a typing mistake, in whatever signs: the text encoders would read them as words."""

import difflib
import html
import re
import unicodedata

# as text, for the import of the pack shall be quick: `re` compiles a pattern at its first use, and keeps it
LABEL = r"(?:\s*:[^|<>]{0,200})?"
ENDS = (  # either end of a trigger, or one without its bars
    rf"(?i)<\s*\|[\s|]*subj(?:[^<>]{{0,24}}>)?|\|subj(?::\w+)?\|>?|subj{LABEL}\s*\|\s*>|<\s*subj(?:\s*:\s*\w+)?\s*>"
)
IN_SIGNS = rf"<[\s|]*([^\W_]\w{{0,19}}){LABEL}[\s|]*>"  # any word between a trigger's signs
# a word cut at a bar, as the front end cuts a choice {man<|subj|>|woman}, but no face: >w< (>o<) ^w< o_<
CUT = r"(?<![\w^~])(?<!\A>)(?<![^\w|]>)(?:_*[^\W_]\w*[^\W_]_*|[^\W_])<(?=[\s,.;)]|\Z)"
WORDS, NEAR = ("subj", "subject"), 0.75
# full-width signs and letters are plain ones in Unicode's NFKC; these look like them
LOOKALIKES = str.maketrans(
    "\u00a6\u01c0\u2223\u2502\u2758\u2039\u00ab\u2329\u3008\u27e8\u300a\u203a\u00bb\u232a\u3009\u27e9\u300b",
    "|||||<<<<<<>>>>>>",
)


def find_mistyped(prompt: str, right: re.Pattern) -> slice | None:
    """Where the first mistyped trigger stands in a prompt, apart from those that `right` matches."""
    signs, places = [], []
    for match in re.finditer(rf"{right.pattern}|(?P<sign>&#?\w{{1,8}};|.)", prompt, re.DOTALL):
        seen = unicodedata.normalize("NFKC", html.unescape(match["sign"] or "")).translate(LOOKALIKES)
        shown = [char for char in seen if char != "\\" and not _is_invisible(char)]
        signs += shown
        places += [match.start()] * len(shown)
    if found := _first("".join(signs)):
        return slice(places[found.start()], [*places, len(prompt)][found.end()])
    cut = re.search(CUT, prompt)  # in its own signs: \u00ab is a closing quote in German
    return cut and slice(*cut.span())


def visible(text: str) -> str:
    """Text with invisible characters by number, as in <[U+200B]|subj|>."""
    return "".join(f"[U+{ord(char):04X}]" if _is_invisible(char) else char for char in text)


def _first(text: str) -> re.Match | None:
    alike = (match for match in re.finditer(IN_SIGNS, text) if "|" in match[0] and _is_like_a_trigger(match[1]))
    found = filter(None, (re.search(ENDS, text), next(alike, None)))
    return min(found, key=re.Match.start, default=None)


def _is_like_a_trigger(word: str) -> bool:
    return word.isdecimal() or bool(difflib.get_close_matches(word.lower(), WORDS, cutoff=NEAR))


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) == "Cf"
