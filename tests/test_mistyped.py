"""Triggers with a typing mistake are refused, and honest prompts are not."""

import time

import pytest

from mmdiff_model.mistyped import find_mistyped, visible
from mmdiff_model.prompt import MOST_LETTERS, TRIGGER, PromptError, check_negative, check_triggers

MISTYPED = [
    *["\uff1c\uff5csubj\uff5c\uff1e", "<\uff5csubj|>", "\uff1c|\uff53\uff55\uff42\uff4a|\uff1e"],
    *["<\u200b|subj|>", "<|su\u200bbj|>", "<|subj\ufeff|>", "&lt;|subj|&gt;", "&#60;|subj:2|&#62;", "< | subj | >"],
    *["<|sub|>", "<|subject:2|>", "<|sbj:anna|>", "<subj>", "<subj:2>", "<subj|>", "<|subj>", "<|Subj:anna|>"],
    *["<|subj|", "|subj|", "subj|>", "<||subj||>", "<\\|subj\\|>", "\u300a|subj|\u300b", "\u00absubj|\u00bb"],
    *["<|1|>", "<\n|subj|>", "< |subj|>", "<|subj 2|>"],
]
HONEST = [
    *["<3", "a < b, 1 <2", "<lora:subj:1.0>", "H<sub>2</sub>O", "<|endoftext|> <|im_start|> <|system|>", "|> <| x"],
    *["subj: a man | light: soft", "photo | subj: man | style: x", "<subject> and subjective", "a|b|c", "A&T &copy; x"],
    *["\u300a\u7ea2\u697c\u68a6\u300b", "\u00absujet\u00bb", "x -> y <- z", ":< >:<", "<style:1> <1>", "{a|b}"],
    *[">_<", ">w<", "(>_<)", "(>w<)", ">uwu<, >3< :>", "^w< o_< <o>_<o> <|>_<|>", "\uff1e\u03c9\uff1c"],
    *[
        "\u00bbHallo\u00ab, sagt sie",
        "il dit\u00ab Bonjour \u00bb",
        "\u203aja\u2039. \u00bbano\u00ab;",
        "\u0645\u00ab\u0633\u00bb",
    ],
    *["__wildcard__ {2$$a|b}", "<b>bold</b> text<br>", "3 < 5, x<5, a<b<c", "score_9 >_o |_|", "man&lt; &lt;"],
    *["\u300e\u6625\u300f\u3008\u79cb\u3009", "--8<-- <-- <<<", "[a:b:0.5] (c:1.2) \\(d\\)", "</3 <:3c ( <_< )"],
]


@pytest.mark.parametrize("wrong", MISTYPED, ids=ascii)
def test_a_mistyped_trigger_is_quoted_with_the_right_form(wrong):
    for before, place in (("a man", "a man"), ("a dog<|subj|> and a man", "a dog and a man")):
        with pytest.raises(PromptError) as error:
            check_triggers(f"{before}{wrong} in the rain", 1)
        assert f'a trigger is mistyped, after "{place}": "{visible(wrong.removesuffix("|"))}' in str(error.value)
        assert "Write <|subj|>, <|subj:2|> or <|subj:anna|> in just these signs" in str(error.value)
    with pytest.raises(ValueError, match="(?s)^negative: a trigger .* stands in the negative prompt"):
        check_negative(f"blurry{wrong}")


def test_what_the_front_end_leaves_of_a_trigger_in_a_choice():
    """It cuts {a boy<|subj|>|a girl} at its bars."""
    for cut in ("a boy<", "a boy< and a dog<|subj|>", "a boy<, a dog<|subj|>"):
        with pytest.raises(PromptError, match='after "a ": "boy<".*behind a choice, not inside: {boy.girl}<.subj.>'):
            check_triggers(cut, 1)
    for cut in ("<lora:x:1>boy<", "<|subj|>boy< ", "{__pet__<", "a " + "\u7537\u5b69" * 20 + "<"):
        assert find_mistyped(cut, TRIGGER)


@pytest.mark.parametrize("honest", HONEST, ids=ascii)
def test_an_honest_text_is_no_mistyped_trigger(honest):
    check_triggers(f"{honest}, a man<|subj|> in {honest} and {honest}", 1)
    check_negative(f"blurry {honest}")


def test_a_text_of_signs_takes_no_longer_than_others():
    signs = ["<", "<|", "< ", "|", "&", "&lt;", "subj:", "<|a", "<a:", "<subj:a", "<| ", " |", "subj ", "e\u0301", "_"]
    for sign, before in ((sign, before) for sign in signs for before in ("", "<", "<|", "<a")):
        text, start = before + sign * ((MOST_LETTERS - 10) // len(sign)), time.process_time()
        find_mistyped(text, TRIGGER)
        assert time.process_time() - start < 1, (before, sign)


def test_a_prompt_of_a_million_letters_is_refused_at_once():
    start = time.process_time()
    long = "a man" + " " * 1_000_000
    with pytest.raises(ValueError, match="^positive: the prompt has 1000805 letters, more than 20000 are not read"):
        check_triggers(long + "<|subj|>" * 100, 100)
    with pytest.raises(ValueError, match="^negative: the prompt has 1000005 letters"):
        check_negative(long)
    assert time.process_time() - start < 0.5
