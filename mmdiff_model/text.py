"""Vision-augmented text: the class word's token embedding is fused with CLS before the text encoders run.

ComfyUI's tokenised prompt may hold a vector in place of a token id, so the text encoders themselves stay untouched.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.sd import CLIP
from torch import Tensor

from .checkpoint import Checkpoint
from .lora import add_lora, text_patches
from .prompt import (
    TRIGGER,
    PromptError,
    check_negative,
    class_word_ends,
    embedding_before,
    strip_triggers,
    trigger_subjects,
)
from .schedule import Schedule
from .subject import Subject, identify

MARKER, MARKER_ID = "<|startoftext|>", 49406
ENCODERS = ("l", "g")
CHUNK = 77
SHOWN = 40  # letters of a word that people read
# conditioning entry: (subject, token position in the flat embeddings) of each fused class word
CLASS_WORDS = "mmdiff_class_words"
# conditioning entry: (subject, its identity) of each subject that the prompt calls
CALLED = "mmdiff_called"
# conditioning entry: tokens of the prompt, and of its embeddings, which a neighbour's encoder may have doubled
TOKENS = "mmdiff_tokens"
# conditioning entry: the class word of each trigger, acting or not, for people to read
WRITTEN = "mmdiff_written"

Tokens = dict[str, list[list[tuple]]]


@dataclass(frozen=True)
class ClassWord:
    """The last token of a class word: its subject, and where it stands (chunk of 77 tokens, position in the chunk)."""

    subject: int
    chunk: int
    position: int


class WrittenWord(NamedTuple):
    """A class word as the prompt has it: its subject, its fused token as text, and that token's position."""

    subject: int
    word: str
    token: str
    position: int


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """Conditionings of one prompt pair as ComfyUI passes them: lists of [embeddings (1, 77 c, 2048), options]."""

    positive: list
    negative: list


def encode_text(
    clip: CLIP,
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    positive: str,
    negative: str,
    schedule: Schedule | None = None,
    clean_negative: bool = False,
) -> TextEncoding:
    """A prompt with triggers and a negative prompt -> conditionings, plain or fused in each phase of the schedule.

    As released, the negative prompt's token at a class word's position is fused too, unless `clean_negative`.
    Raises PromptError on misplaced triggers, ValueError on any in the negative prompt and where CLIP is not SDXL's.
    """
    check_negative(negative)
    clip = with_text_lora(clip, checkpoint)
    words = find_class_words(clip, positive, trigger_subjects(positive, [subject.name for subject in subjects]))
    for source, text in (("positive", strip_triggers(positive)), ("negative", negative)):
        check_weights(tokenize(clip, text, source), source)
    called = tuple((index, identify(subjects[index])) for index in sorted({word.subject for word in words["l"]}))
    written = tuple(written_words(clip, positive, words["l"]))
    fuse = TextFusion(clip, checkpoint, subjects)
    encoded = TextEncoding([], [])
    for phase in (schedule or Schedule()).phases(subjects):
        options = phase.conditioning_options()
        active = {key: [word for word in found if word.subject in phase.subjects] for key, found in words.items()}
        keys = tuple((word.subject, word.chunk * CHUNK + word.position) for word in active["l"])
        subjects_of = {CLASS_WORDS: keys, CALLED: called, WRITTEN: written}
        encoded.positive.extend(fuse.encode(strip_triggers(positive), active, options | subjects_of))
        encoded.negative.extend(fuse.encode(negative, {} if clean_negative else active, options))
    check_finite(encoded.positive, "positive")
    check_finite(encoded.negative, "negative")
    return encoded


def encode_plain(clip: CLIP, text: str, source: str) -> list:
    """The host's conditioning of a text without triggers. Raises ValueError naming the input where it is not finite or
    the host cannot read it."""
    check_weights(tokenize(clip, text, source), source)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    check_finite(conditioning, source)
    return conditioning


def check_finite(conditioning: list, source: str) -> None:
    """Raises ValueError naming the input where a conditioning holds NaN or infinite numbers."""
    if not all(embeddings.isfinite().all() for embeddings, _ in conditioning):
        raise ValueError(
            f"{source}: the encoded prompt holds numbers that are not finite, and would paint black. A weight in it is "
            "too large, or one of its embeddings or subjects is damaged."
        )


def with_text_lora(clip: CLIP, checkpoint: Checkpoint) -> CLIP:
    """A clone of CLIP with the checkpoint's text LoRA. Raises ValueError where it is not SDXL's two encoders."""
    tokenizer = clip.tokenizer
    if not all(hasattr(tokenizer, f"clip_{key}") for key in ENCODERS):
        raise ValueError(
            f"clip: MM-Diff needs SDXL's two text encoders, this CLIP has the tokeniser {type(tokenizer).__name__}. "
            "Connect the CLIP of an SDXL checkpoint."
        )
    clip = clip.clone()
    try:
        patches = text_patches(clip.patcher, checkpoint.text_lora, checkpoint.text_encoder_2_lora)
    except ValueError as error:
        raise ValueError(
            f"clip: {error}. Connect the CLIP of the SDXL model that the checkpoint was trained on."
        ) from error
    add_lora(clip.patcher, patches, f"{checkpoint.lora_digest} {checkpoint.text_encoder_2_lora}")
    return clip


def find_class_words(clip: CLIP, prompt: str, subjects: Sequence[int]) -> dict[str, list[ClassWord]]:
    """Where each trigger's class word ends, for each encoder, in the prompt without triggers.

    The host's tokeniser reads the prompt with a marker in one trigger's place at a time. The class word's last token
    is the last one before the marker, or the first that is another without it (as in boy<|subj|>s). Raises PromptError
    where no word is there, two subjects share one, or the prompt is read in another way without the marker.
    """
    text = strip_triggers(prompt)
    clean = {key: _real_tokens(rows) for key, rows in tokenize(clip, text, "positive").items()}
    if any(_is_marker(token) for _, token in clean["l"]):
        raise PromptError(prompt, f"{MARKER} is the text encoders' own start mark and cannot stand as a word")
    words = {key: [] for key in ENCODERS}
    for subject, match, end in zip(subjects, TRIGGER.finditer(prompt), class_word_ends(prompt), strict=True):
        embedding = embedding_before(text, end)
        marked = tokenize(clip, text[:end] + (f" {MARKER}" if embedding else MARKER) + text[end:])
        for key in ENCODERS:
            tokens = [token for _, token in _real_tokens(marked[key])]
            before = tokens[: next((i for i, token in enumerate(tokens) if _is_marker(token)), 0)]
            try:
                chunk, position = _last_token(clip, embedding, before, clean[key])
            except ValueError as error:
                raise PromptError(prompt, str(error), match.start()) from None
            if not fits(clip, key, dict(clean[key])[chunk, position]):
                problem = f"a trigger follows {embedding}, which is not an embedding of SDXL's text encoders"
                raise PromptError(prompt, problem, match.start())
            words[key].append(ClassWord(subject, chunk, position))
            _check_owner(prompt, words[key], match.start())
    return words


def written_words(clip: CLIP, prompt: str, words: Sequence[ClassWord]) -> Iterator[WrittenWord]:
    """The class words that find_class_words found for the first encoder, as they are written."""
    text = strip_triggers(prompt)
    tokens = dict(_real_tokens(tokenize(clip, text)["l"]))
    for found, end in zip(words, class_word_ends(prompt), strict=True):
        token = tokens[found.chunk, found.position]
        name = "an embedding" if torch.is_tensor(token) else _text(clip, [token])
        word = re.split(r"[\s(]", text[:end])[-1][-SHOWN:]
        yield WrittenWord(found.subject, word, name, found.chunk * CHUNK + found.position)


def tokenize(clip: CLIP, text: str, source: str = "positive") -> Tokens:
    """The host's tokens with their words' ids. Raises ValueError naming the input where the host cannot read it."""
    try:
        return clip.tokenize(text, return_word_ids=True)
    except Exception as error:  # parentheses too deep, an empty or damaged embedding, lone surrogates: any kind
        raise ValueError(
            f"{source}: ComfyUI's tokeniser cannot read the prompt ({type(error).__name__}: {error}). Check its "
            "parentheses, its embeddings and signs that are not text."
        ) from error


def check_weights(tokens: Tokens, source: str) -> None:
    """Raises ValueError naming the input where a weight is NaN or infinite, which ComfyUI reads and paints black."""
    if not all(math.isfinite(weight) for rows in tokens.values() for row in rows for _, weight, _ in row):
        raise ValueError(f"{source}: a weight in the prompt is not a finite number. Write it as in (a man:1.2).")


def _real_tokens(rows: list[list[tuple]]) -> list[tuple[tuple[int, int], int | Tensor]]:
    return [
        ((chunk, position), token)
        for chunk, row in enumerate(rows)
        for position, (token, _, word_id) in enumerate(row)
        if word_id > 0
    ]


def fits(clip: CLIP, key: str, token: int | Tensor) -> bool:
    """Whether a token is one of this encoder's: the vector of another model's embedding, which ComfyUI leaves out, is
    not."""
    encoder = getattr(clip.cond_stage_model, f"clip_{key}").transformer
    return not torch.is_tensor(token) or token.shape[-1] == encoder.get_input_embeddings().embedding_dim


def _is_marker(token: int | Tensor) -> bool:
    return not torch.is_tensor(token) and token == MARKER_ID


def _last_token(clip: CLIP, embedding: str, before: list, clean: list) -> tuple[int, int]:
    """Chunk and position of the token that ends the text before the marker; ValueError says what is wrong.

    embedding: the one that this text ends with, or ""."""
    if not before:
        raise ValueError("a trigger has no word before it")
    if embedding and not torch.is_tensor(before[-1]):
        raise ValueError(f"a trigger follows {embedding}, which ComfyUI does not find and leaves out of the prompt")
    shared = next((i for i, (a, (_, b)) in enumerate(zip(before, clean, strict=False)) if not _same(a, b)), len(before))
    shared = min(shared, len(clean))
    if shared < len(before):
        rest = [token for _, token in clean[shared:]]
        if not rest or not _text(clip, rest).startswith(_text(clip, before[shared:])):
            raise ValueError("a trigger stands inside of a weight, a name or a letter, and is read as a part of it,")
    return clean[min(shared, len(before) - 1)][0]


def _same(a: int | Tensor, b: int | Tensor) -> bool:
    if torch.is_tensor(a) and torch.is_tensor(b):
        return torch.equal(a, b)
    return not torch.is_tensor(a) and not torch.is_tensor(b) and a == b


def _text(clip: CLIP, tokens: list) -> str:
    """Tokens as letters of the vocabulary; no text holds an embedding's."""
    return "".join(
        "\0" if torch.is_tensor(token) else clip.tokenizer.untokenize([(token, 1.0)])[0][1].removesuffix("</w>")
        for token in tokens
    )


def _check_owner(prompt: str, words: list[ClassWord], place: int) -> None:
    *others, last = words
    for word in others:
        if (word.chunk, word.position) == (last.chunk, last.position) and word.subject != last.subject:
            raise PromptError(
                prompt,
                "two subjects share one class word; join them with Mix MM-Diff Subjects or give each its own word",
                place,
            )


class TextFusion:
    """Encodes prompts with the fused token embeddings of given subjects."""

    def __init__(self, clip: CLIP, checkpoint: Checkpoint, subjects: Sequence[Subject]):
        self.clip = clip
        self.adapter = checkpoint.adapter
        self.cls = [subject.cls for subject in subjects]

    def encode(self, prompt: str, words: dict[str, list[ClassWord]], options: dict) -> list:
        """Conditioning of a prompt whose tokens at `words` are fused; a word beyond the prompt's chunks is left out."""
        tokens = self.clip.tokenize(prompt, return_word_ids=True)
        ends = {key: sum(word_id > 0 for _, _, word_id in rows[0]) + 1 for key, rows in tokens.items()}
        words = {key: [word for word in found if word.chunk < len(tokens[key])] for key, found in words.items()}
        conditioning = self._encode(tokens, words, options)
        within = {
            key: [word for word in found if word.chunk > 0 or word.position < ends[key]] for key, found in words.items()
        }
        if within != words:
            # ComfyUI counts vectors after the end token as text and would pool one of them
            pooled = self._encode(tokens, within, options)
            for (_, entry), (_, text_only) in zip(conditioning, pooled, strict=True):
                entry["pooled_output"] = text_only["pooled_output"]
        return conditioning

    def _encode(self, tokens: Tokens, words: dict[str, list[ClassWord]], options: dict) -> list:
        rows = {
            key: [[(token, weight) for token, weight, _ in row] for row in chunks] for key, chunks in tokens.items()
        }
        words = self._whole_words(rows, words)
        if words["l"]:
            for key, vectors in zip(ENCODERS, self._fuse(rows, words), strict=True):
                for word, vector in zip(words[key], vectors, strict=True):
                    rows[key][word.chunk][word.position] = (vector, rows[key][word.chunk][word.position][1])
        conditioning = self.clip.encode_from_tokens_scheduled(rows, add_dict=options)
        count = min(len(chunks) for chunks in rows.values()) * CHUNK
        for embeddings, entry in conditioning:
            entry[TOKENS] = (count, embeddings.shape[1])
        return conditioning

    def _whole_words(self, rows: Tokens, words: dict[str, list[ClassWord]]) -> dict[str, list[ClassWord]]:
        """Without those where another model's embedding stands, as it may in a negative prompt."""
        whole = [
            pair
            for pair in zip(*(words.get(key, ()) for key in ENCODERS), strict=True)
            if all(
                fits(self.clip, key, rows[key][word.chunk][word.position][0])
                for key, word in zip(ENCODERS, pair, strict=True)
            )
        ]
        return {key: [pair[i] for pair in whole] for i, key in enumerate(ENCODERS)}

    @torch.no_grad()
    def _fuse(self, rows: Tokens, words: dict[str, list[ClassWord]]) -> tuple[Tensor, Tensor]:
        embeddings = tuple(
            torch.stack([self._embed(key, rows[key][word.chunk][word.position][0]) for word in words[key]])
            for key in ENCODERS
        )
        cls = torch.stack([self.cls[word.subject] for word in words["l"]])
        comfy.model_management.load_model_gpu(self.adapter)
        device = self.adapter.load_device
        return tuple(
            fused.cpu() for fused in self.adapter.model.fuse(tuple(e.to(device) for e in embeddings), cls.to(device))
        )

    def _embed(self, key: str, token: int | Tensor) -> Tensor:
        if torch.is_tensor(token):
            return token.float()
        device = self.clip.load_model().load_device
        encoder = getattr(self.clip.cond_stage_model, f"clip_{key}").transformer
        return encoder.get_input_embeddings()(torch.tensor([token], device=device), out_dtype=torch.float32)[0].cpu()
