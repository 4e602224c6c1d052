"""The prompt grammar against the host's own tokenisers."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers import random_subject
from mmdiff_model.prompt import RIGHT, WHERE, PromptError, strip_triggers, trigger_subjects
from mmdiff_model.text import ENCODERS, encode_text, find_class_words

pytestmark = pytest.mark.hosts

WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "glassblower",
    "painting",
    "of",
    "in",
    "rain,",
    "sunset.",
    "caf\u00e9",
    "1girl",
    "x-ray",
    "it's",
    r"\(",
    "(soft",
    "light:1.2)",
    "((warm))",
]
CLASS_WORDS = ["man", "woman", "glassblower", "firefighter", "grandmother's", "caf\u00e9"]
# what the released code finds: prompt -> positions in the 77 tokens
RELEASED = {
    "a man<|subj|> in front": [2],
    "a man <|subj|> in front": [2],
    "a glassblower<|subj|> at work": [3],
    "a man<|subj|>, smiling": [2],
    "a man's<|subj|> hat": [3],
    "two man<|subj|>s": [2],
    "a man<|subj|> and a woman<|subj|> x": [2, 5],
}


def positions(tiny, prompt: str, subjects: int = 1) -> dict[str, list[tuple[int, int]]]:
    found = find_class_words(tiny.clip, prompt, trigger_subjects(prompt, [""] * subjects))
    return {key: [(word.chunk, word.position) for word in words] for key, words in found.items()}


def token_text(tiny, key: str, prompt: str, place: tuple[int, int]) -> str:
    row = tiny.clip.tokenize(strip_triggers(prompt))[key][place[0]]
    return tiny.clip.tokenizer.untokenize([row[place[1]]])[0][1].removesuffix("</w>")


@pytest.mark.parametrize("prompt", RELEASED)
def test_positions_are_the_released_codes(prompt, tiny):
    found = positions(tiny, prompt, len(RELEASED[prompt]))
    assert all(found[key] == [(0, position) for position in RELEASED[prompt]] for key in ENCODERS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.sampled_from(WORDS), max_size=120),
    after=st.lists(st.sampled_from(WORDS), max_size=20),
    word=st.sampled_from(CLASS_WORDS),
    form=st.sampled_from(["{}<|subj|>", "({}<|subj|>:1.3)", "(({}<|subj|>))", "{} <|subj|>", "({}:0.8)<|subj|>"]),
)
@example(before=["(soft"], after=[], word="man", form="({}:0.8)<|subj|>")
@example(before=["light:1.2)"], after=[], word="man", form="({}:0.8)<|subj|>")
def test_the_class_words_last_token_is_found_anywhere(tiny, before, after, word, form):
    prompt = " ".join([*before, form.format(word), *after])
    (last,) = {token_text(tiny, "l", word, (0, len(tiny.clip.tokenizer.clip_l.tokenizer(word)["input_ids"]) - 2))}
    for key, places in positions(tiny, prompt).items():
        assert token_text(tiny, key, prompt, places[0]) == last


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(CLASS_WORDS), min_size=2, max_size=6),
    filler=st.lists(st.sampled_from(WORDS[:9]), max_size=40),
)
def test_several_triggers_keep_their_order(tiny, words, filler):
    prompt = " ".join(f"{' '.join(filler)} {word}<|subj|>" for word in words)
    for places in positions(tiny, prompt, len(words)).values():
        assert places == sorted(places) and len(set(places)) == len(words)


def test_an_embedding_can_be_the_class_word(tiny, models_folder):
    save_file(
        {"clip_l": torch.randn(3, 192), "clip_g": torch.randn(3, 320)},
        models_folder / "embeddings" / "friend.safetensors",
    )
    for prompt in ("a photo of embedding:friend<|subj|>, smiling", "a photo of embedding:friend <|subj|> smiling"):
        assert positions(tiny, prompt)["l"] == [(0, 6)]
        assert torch.is_tensor(tiny.clip.tokenize(strip_triggers(prompt))["l"][0][6][0])


def test_numbers_and_names():
    assert trigger_subjects("a <|subj:2|> b <|subj:anna|> c <|subj|>", ["", "", "anna"]) == [1, 2, 0]
    assert trigger_subjects("man<|subj:1|>, again the man<|subj:1|>", [""]) == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "names", "problem", "remedy"),
    [
        ("a man on the beach", [""], "no trigger", WHERE),
        ("A MAN<|SUBJ|>", [""], 'mistyped, after "A MAN": "<.SUBJ.>"', RIGHT),
        ("a man<|subj|> and a woman<|subj|>", [""], "more triggers than subjects", "or take this trigger out"),
        ("a man<|subj:3|>", ["", ""], "names no connected subject", "Write one of those in its place"),
        ("a man<|subj:bob|>", ["anna"], "names no connected subject", "Write one of those in its place"),
    ],
)
def test_mistakes_quote_the_prompt_and_say_what_to_do(prompt, names, problem, remedy):
    with pytest.raises(PromptError, match=problem) as error:
        trigger_subjects(prompt, names)
    quoted, _, advice = str(error.value).partition(f'"{prompt}". ')
    assert quoted and remedy in advice and (WHERE in advice) == (remedy == WHERE)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("<|subj|> man", "no word before it"),
        ("a man, <|subj|> smiling", "punctuation"),
        ("a man<|subj:1|><|subj:2|>", "share one class word"),
    ],
)
def test_misplaced_triggers(prompt, problem, tiny):
    with pytest.raises(PromptError, match=problem) as error:
        positions(tiny, prompt, 2)
    assert f'"{prompt}"' in str(error.value)


def test_another_models_embedding(tiny, checkpoint, models_folder):
    """One of SD 1.5 has the first encoder's width alone: ComfyUI leaves it out of the second."""
    file, anna = models_folder / "embeddings" / "easynegative.safetensors", random_subject(checkpoint, 1)
    save_file({"emb_params": torch.randn(3, 192)}, file)
    try:
        text = encode_text(tiny.clip, checkpoint, [anna], "a man<|subj|>", "embedding:easynegative, blurry")
        assert all(embeddings.isfinite().all() for embeddings, _ in text.negative)
        with pytest.raises(PromptError, match="not an embedding of SDXL's text encoders"):
            encode_text(tiny.clip, checkpoint, [anna], "embedding:easynegative<|subj|> dancing", "")
    finally:
        file.unlink()


@pytest.mark.parametrize(
    "source, prompts", [("positive", ("(a man<|subj|>:1e39)", "")), ("negative", ("a man<|subj|>", "(x:1e39)"))]
)
def test_numbers_that_end_in_nan_are_refused(tiny, checkpoint, source, prompts):
    with pytest.raises(ValueError, match=f"^{source}: the encoded prompt holds numbers that are not finite"):
        encode_text(tiny.clip, checkpoint, [random_subject(checkpoint, 1)], *prompts)
