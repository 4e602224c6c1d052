"""Prompts around triggers, with textual inversions among the words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from .fused import Fusion, Recorder
from .outcome import RIGHT, Wrong, make_subject
from .values import LARGE, ODD, any_text

WORDS = [
    *("a ", "man", "woman", "boy", "<|subj|>", "<|subj|>", "<|subj:1|>", "<|subj:2|>", "<|subj:anna|>", "<|subj:9|>"),
    *(
        "<|subj:|>",
        "<|subj",
        "|>",
        "(",
        ")",
        "((",
        "))",
        ":1.2)",
        ": 1.2)",
        ":1e0)",
        ":nan)",
        ":1_0)",
        ":" + "9" * 400,
    ),
    *(
        " ",
        ", ",
        "s",
        "\\(",
        "\\)",
        "embedding:",
        "embedding:none ",
        "embedding:friend",
        " embedding:sd15 ",
        " embedding:broken ",
        " embedding:nan ",
        " embedding:huge ",
        *ODD,
        "<|startoftext|>",
        "<|endoftext|>",
        "\u7537\u4eba",
    ),
    *(
        "\U0001f600",
        "\u0631\u062c\u0644",
        "e\u0301",
        "\0",
        "\n",
        "word " * 70,
        "[",
        "]",
        "BREAK",
    ),
]
LONG_NUMBER = "<|subj:" + "1" * 5000 + "|>"  # as words of a negative prompt the host takes seconds to read it

PHRASES = [
    *(
        "a man<|subj|>",
        "(a boy:1.2)<|subj|>",
        "a (woman<|subj|>:1.3)",
        "two girls<|subj:2|>",
        "an old man<|subj:anna|>",
    ),
    *(
        "the sea",
        "word " * 73 + "man<|subj|>",
        "\u7537\u4eba<|subj|>",
        "a boy<|subj|>s",
        "man<|subj|>a",
        "((man))<|subj:1|>",
    ),
    *(
        "embedding:friend<|subj|>",
        "(embedding:friend)<|subj|> x",
        "embedding:friend dancing",
        "embedding:sd15 beside a man<|subj|>",
        "embedding:broken man<|subj:2|>",
        "embedding:none<|subj|>",
        "embedding:sd15<|subj|>",
        "(embedding:friend boy<|subj|>:1.2)",
    ),
]


def joined(words: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=9).map("".join)


EMBEDDINGS = {"friend": 3, "sd15": 2, "broken": 0, "nan": 1, "huge": 1}  # vectors that the host reads of each file


def write_embeddings(folder: Path) -> None:
    """Textual inversions: whole, of SD 1.5 alone, damaged, and of numbers that are none or too large."""
    folder.mkdir()
    friend = {"clip_l": torch.randn(3, 192), "clip_g": torch.randn(3, 320)}
    save_file(friend, folder / "friend.safetensors")
    save_file({"emb_params": torch.randn(2, 192)}, folder / "sd15.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    for name, number in (("nan", float("nan")), ("huge", 3e38)):
        vectors = {key: torch.full_like(one[:1], number) for key, one in friend.items()}
        save_file(vectors, folder / f"{name}.safetensors")


class Prompts:
    """Prompts around triggers: the class words fused, conditionings of finite numbers in chunks of 77, or refused.
    Cases are (prompt, negative prompt, by what the subjects' CLS are multiplied)."""

    def __init__(self, folder: Path):
        from mm_diff_pack.mmdiff_model.checkpoint import load_checkpoint
        from mm_diff_pack.mmdiff_model.text import encode_text

        from tiny_pack.checkpoint import write_official_checkpoint
        from tiny_pack.models import make_clip

        write_embeddings(folder / "embeddings")
        self.checkpoint = load_checkpoint(write_official_checkpoint(folder / "portrait"))
        self.clip, self.encode = make_clip(20, str(folder / "embeddings")), encode_text
        sizes = (96, 4, 512, self.checkpoint.hash)
        self.subjects = [make_subject(*sizes, name="anna"), make_subject(*sizes)]
        self.recorder = Recorder(self.clip)
        self.fusion = Fusion(self.clip, self.checkpoint.adapter.model, [subject.name for subject in self.subjects])
        sentences = st.lists(st.sampled_from(PHRASES), min_size=1, max_size=3).map(" and ".join)
        self.cases = st.tuples(
            st.one_of(sentences, joined([*WORDS, LONG_NUMBER]), any_text(40)),
            st.one_of(st.just("blurry"), joined(WORDS), any_text(40)),
            st.sampled_from([*[1.0] * 12, *LARGE]),
        )

    def __call__(self, case) -> str:
        *prompts, factor = case
        subjects = [replace(subject, cls=subject.cls.clamp(-1, 1) * factor) for subject in self.subjects]
        self.recorder.given.clear()
        text = self.encode(self.clip, self.checkpoint, subjects, *prompts)
        for conditioning in (text.positive, text.negative):
            for embeddings, options in conditioning:
                if embeddings.shape[1] % 77 or not embeddings.isfinite().all():
                    raise Wrong(f"conditioning {tuple(embeddings.shape)}")
                if not options["pooled_output"].isfinite().all():
                    raise Wrong("pooled text that is not finite")
        told = {word for _, options in text.positive for word in options["mmdiff_class_words"]}
        self.fusion.check(prompts, self.recorder.given, [subject.cls for subject in subjects], EMBEDDINGS, told)
        return RIGHT
