"""Class words against an oracle of the tests' own: hand-parsed weights and the tokenizers library's offsets."""

import re
import time

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fuzzing.prompt_oracle import places
from helpers import random_subject
from mmdiff_model.prompt import (
    MOST_TRIGGERS,
    TRIGGER,
    PromptError,
    embedding_before,
    strip_triggers,
    trigger_subjects,
)
from mmdiff_model.text import ENCODERS, encode_text, find_class_words

pytestmark = pytest.mark.hosts

HEBREW_MAN, ARABIC_GIRL = "\u05d0\u05d9\u05e9", "\u0641\u062a\u0627\u0629"
CHINESE_MAN, CHINESE_DANCES = "\u7537\u4eba", "\u5728\u8df3\u821e"
DOG_FACE, FAMILY, DARK_HAND = "\U0001f436", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44b\U0001f3ff"
CLASS_WORDS = [
    *["man", "Woman", "GLASSBLOWER", "firefighter", "grandmother", "x-ray", "caf\u00e9", "1girl", "boy", "dog", "king"],
    *[HEBREW_MAN, ARABIC_GIRL, CHINESE_MAN, DOG_FACE, DARK_HAND, "\u0130stanbullu", "stra\u00dfe", "\u1e9eA"],
]
BEFORE = [
    *[
        "a",
        "photo",
        "of",
        "in",
        "rain,",
        "(soft",
        "light:1.2)",
        "((warm))",
        r"\(",
        r"\)",
        "(x:",
        ":)",
        "<",
        "embedding",
    ],
    *["1.2", ":", "(a:nan)", "(b:1e0)", "(c: 1_0 )", "(:1.2)", "\\", "\n", "  ", "'s", "it's", CHINESE_DANCES],
    *[DOG_FACE, FAMILY, HEBREW_MAN, "\u200f", "|>", "<|endoftext|>", "\u00a0", "((((", "))"],
]
ENDINGS = [
    *["s", "ing", "es", "'s", "ly", "a", "er", "hood", "ish", "like", "-like", ",", ".", "!", "1", "ess", "en", "ier"],
    *["ed", "y", "'d"],
]
FORMS = [
    *["{}<|subj|>", "{} <|subj|>", "({}<|subj|>:1.3)", "(({}<|subj|>))", "({}:0.8)<|subj|>", "({}: 1.2)<|subj|>"],
    *["({}:1e0)<|subj|>", "({}: 1_0 ) <|subj|>", "(({}:1.1):+.5)<|subj|>", "({})\n<|subj|>", "({}:infinity)<|subj|>"],
    *["{}\u200f<|subj|>", "[{}<|subj|>]", "({}:-1)<|subj|>", "(({})<|subj|>)", "({}:\u0661)<|subj|>"],
]
slow = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def found_places(tiny, prompt: str) -> dict[str, list[int]]:
    """Index among the real tokens of each trigger's class word."""
    triggers = len(TRIGGER.findall(prompt))
    words = find_class_words(tiny.clip, prompt, trigger_subjects(prompt, [""] * triggers))
    indices = {}
    for key, rows in tiny.clip.tokenize(strip_triggers(prompt), return_word_ids=True).items():
        real = [(chunk, i) for chunk, row in enumerate(rows) for i, token in enumerate(row) if token[2] > 0]
        indices[key] = [real.index((word.chunk, word.position)) for word in words[key]]
    return indices


def check(tiny, before: str, word: str, form: str, after: str, trigger: int = 0) -> None:
    prompt = before + form.format(word) + after
    start = strip_triggers(before + form[: form.index("{")])
    # letters in front of the word belong to it: in Dman<|subj|> the class word is Dman
    wanted = places(strip_triggers(prompt), len(re.sub(r"\w+\Z", "", start)), len(start) + len(word))
    for key, found in found_places(tiny, prompt).items():
        assert found[trigger] in wanted.overlapping, (key, prompt)
        if wanted.last is not None:
            assert found[trigger] == wanted.last, (key, prompt)


@pytest.mark.parametrize("before", ["a ", "a photo of a ", "(a ", "two ", "caf\u00e9 ", "1girl, "])
def test_endings_leave_both_people_where_they_are(before, tiny):
    words = "boy man woman girl dancer glassblower firefighter grandmother child dog cat painter king queen astronaut "
    for word in (words + "robot teacher nurse wolf fish").split():
        for ending in ENDINGS:
            check(tiny, before, word, "{}<|subj|>", f"{ending} and a woman<|subj|> dancing")
            check(tiny, f"{before}{word}<|subj|>{ending} and a ", "woman", "{}<|subj|>", " dancing", trigger=1)


@slow
@given(
    before=st.lists(st.sampled_from(BEFORE), max_size=12),
    word=st.sampled_from(CLASS_WORDS),
    form=st.sampled_from(FORMS),
    after=st.lists(st.sampled_from([*BEFORE, *ENDINGS]), max_size=6),
    space=st.sampled_from(["", " ", ", "]),
)
@example(before=["a"], word="man", form="({}: 1.2)<|subj|>", after=["in"], space=" ")
@example(before=[], word=CHINESE_MAN, form="{}<|subj|>", after=[CHINESE_DANCES], space="")
@example(before=["a"], word="man", form="{}<|subj|>", after=["a"], space="")
def test_any_words_around_it(tiny, before, word, form, after, space):
    check(tiny, "".join(f"{part} " for part in before), word, form, space + " ".join(after))


@slow
@given(fill=st.integers(60, 80), word=st.sampled_from(CLASS_WORDS), long=st.booleans(), ending=st.sampled_from(ENDINGS))
@example(fill=73, word="man", long=False, ending="s")
@example(fill=74, word="man", long=False, ending="s")
@example(fill=75, word="man", long=True, ending="s")
@example(fill=76, word="grandmother", long=False, ending=",")
def test_the_edge_of_a_chunk(tiny, fill, word, long, ending):
    before = "red " * fill + ("(warm):" * long)
    check(tiny, before, word, "{}<|subj|>", f"{ending} and so on")
    check(tiny, f"a dog<|subj|>{ending} " + before, word, "({}<|subj|>:1.2)", " and so on", trigger=1)


@slow
@given(text=st.text(max_size=30), word=st.sampled_from(CLASS_WORDS), rest=st.text(max_size=30))
@example(text="D", word="man", rest="A")
@example(text="\0\2", word="man", rest="")
def test_any_text_is_right_or_refused(tiny, text, word, rest):
    assume("|" not in text + rest)
    try:
        check(tiny, text, word, "{}<|subj|>", rest)
    except PromptError as error:
        assert "<|subj|>" in str(error)
    except ValueError as error:
        assert str(error).startswith("positive: ComfyUI's tokeniser cannot read")


@slow
@given(
    parts=st.lists(
        st.sampled_from(["man", "(", ")", ":1.2", "\\", " ", "<|subj|>", "<|subj:1|>", ",", "a"]), max_size=14
    )
)
def test_triggers_anywhere_fuse_the_text_before_them_or_are_refused(tiny, parts):
    prompt = "".join(parts)
    try:
        found = found_places(tiny, prompt)
    except PromptError:
        return
    for i, trigger in enumerate(TRIGGER.finditer(prompt)):
        before = strip_triggers(prompt[: trigger.start()])
        assert all(found[key][i] in places(strip_triggers(prompt), 0, len(before)).overlapping for key in ENCODERS)


def test_a_word_may_be_split_by_its_trigger_and_shared_by_halves(tiny):
    assert found_places(tiny, "glassblo<|subj|>wer at work")["l"][0] in places("glassblower at work", 0, 11).overlapping
    assert found_places(tiny, "a man<|subj|>man<|subj|> on")["l"] == [1, 2]


@pytest.fixture
def friend(models_folder):
    """An embedding of three vectors."""
    file = models_folder / "embeddings" / "friend.safetensors"
    save_file({"clip_l": torch.randn(3, 192), "clip_g": torch.randn(3, 320)}, file)


@pytest.mark.usefixtures("friend")
@pytest.mark.parametrize(
    "prompt",
    [
        "a embedding:friend<|subj|> x",
        "a (embedding:friend<|subj|>:1.2)",
        "a (embedding:friend: 1.2)<|subj|> x",
        "a embedding:friend<|subj|>, x",
        "a embedding:friend\n<|subj|> x",
        "a\nembedding:friend <|subj|> embedding:friend",
    ],
)
def test_an_embedding_of_several_vectors_is_fused_at_its_last(prompt, tiny):
    assert found_places(tiny, prompt) == {"l": [3], "g": [3]}


@pytest.mark.usefixtures("friend")
@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("a embedding:friend<|subj|>s dancing", "stands inside of a weight, a name"),
        ("a embedding:fri<|subj|>end dancing", "does not find"),
        ("a photo of embedding:nobody<|subj|> dancing", "follows embedding:nobody, which ComfyUI does not find"),
        ("a (man:1.2<|subj|>) in the sun", "stands inside of a weight"),
        ("a man<|subj|> <|startoftext|>", "own start mark"),
        ("a <|StartOfText|> man<|subj|>", "own start mark"),
        ("a cafe<|subj|>\u0301 on a hill", "stands inside of a weight, a name or a letter"),
        ("a man :)<|subj|> in", "punctuation"),
        ("a man\u3002<|subj|> in", "punctuation"),
        ("a (<|subj|>man:1.2)", "punctuation"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_place(prompt, problem, tiny):
    with pytest.raises(PromptError, match=problem) as error:
        found_places(tiny, prompt)
    assert f'"{prompt}"' in str(error.value)


@pytest.mark.parametrize(
    "prompt", ["(" * 3000 + "a man<|subj|>" + ")" * 3000, "a man<|subj|> \ud83d", "man<|subj|> embedding:"]
)
def test_what_the_hosts_tokeniser_cannot_read_is_named(prompt, tiny):
    with pytest.raises(ValueError, match="positive: ComfyUI's tokeniser cannot read the prompt"):
        found_places(tiny, prompt)


def test_as_many_parentheses_as_are_read_take_less_than_a_second(tiny):
    for mess in (")" * 19_900, ") " * 9900, "a:" + ") " * 9900, "(a:1.2" + ")" * 19_900, "<|subj:" * 2800):
        start = time.process_time()
        with pytest.raises(PromptError):
            found_places(tiny, f"a man{mess}<|subj|>,<|subj|>")
        assert time.process_time() - start < 1, mess[:10]


def test_a_hundred_triggers_and_no_more(tiny):
    """Each costs a reading of the whole prompt: six hundred took seconds."""
    places = found_places(tiny, "a man<|subj:1|> " * MOST_TRIGGERS)
    assert len(places["l"]) == len(set(places["l"])) == MOST_TRIGGERS
    for prompt in ("a man<|subj:1|> " * 640, "a man<|subj|> " * (MOST_TRIGGERS + 1)):
        start = time.process_time()
        with pytest.raises(PromptError, match="there are more than 100 triggers at"):
            found_places(tiny, prompt)
        assert time.process_time() - start < 0.5


def test_a_text_of_embeddings_takes_no_longer_than_others(tiny):
    prompt = "(embedding:" * 3000 + "man<|subj|>"
    start = time.process_time()
    for _ in range(100):
        assert embedding_before(strip_triggers(prompt), 11 * 3000 + 3) == prompt[1:-8]
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("prompt", "names", "problem"),
    [
        (f"man<|subj:{'9' * 5000}|>", [""], r"<\|subj:9+\.\.\. names no connected subject"),
        ("man<|subj:|>", [""], "names no connected subject"),
        ("man<|subj|> and a woman<|Subj|>", ["", ""], 'mistyped, after "man and a woman"'),
        ("man<|subj|> and a woman<| subj:2|>", ["", ""], "mistyped"),
        ("man<|su<|subj|>bj|>", [""], "mistyped"),
        ("man<|subj:jose\u0301|>", ["jos\u00e9", "jose\u0301"], "two subjects have the name"),
    ],
)
def test_numbers_and_names_that_could_be_taken_for_another(prompt, names, problem):
    with pytest.raises(PromptError, match=problem) as error:
        trigger_subjects(prompt, names)
    assert len(str(error.value)) < 700


def test_half_an_emoji_does_not_stand_in_a_message():
    with pytest.raises(PromptError) as error:
        trigger_subjects("a man \ud83d", [""])
    assert 'in "a man ?"' in str(error.value)


def test_a_long_prompt_is_quoted_at_the_place(tiny):
    with pytest.raises(PromptError, match='at ".*the end, <.subj.> here" in "a man') as error:
        found_places(tiny, "a man " * 200 + "at the end, <|subj|> here")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("weight", ["nan", "inf", "-1e999"])
def test_a_weight_that_is_no_finite_number_is_refused(tiny, checkpoint, weight):
    subject = random_subject(checkpoint, 1)
    for positive, negative in (("a (man:%s)<|subj|>", ""), ("a man<|subj|>", "(blurry:%s)")):
        prompts = [text.replace("%s", weight) for text in (positive, negative)]
        with pytest.raises(ValueError, match="not a finite number"):
            encode_text(tiny.clip, checkpoint, [subject], *prompts)
