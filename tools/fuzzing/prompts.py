"""Prompts around triggers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from .outcome import RIGHT, Wrong, make_subject

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
]


def joined(words: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=9).map("".join)


class Prompts:
    """Prompts around triggers: conditionings of finite numbers in chunks of 77, or refused."""

    def __init__(self, folder: Path):
        from mm_diff_pack.mmdiff_model.checkpoint import load_checkpoint
        from mm_diff_pack.mmdiff_model.text import encode_text

        from tiny_pack.checkpoint import write_official_checkpoint
        from tiny_pack.models import make_clip

        (folder / "embeddings").mkdir()
        self.checkpoint = load_checkpoint(write_official_checkpoint(folder / "portrait"))
        self.clip, self.encode = make_clip(20, str(folder / "embeddings")), encode_text
        sizes = (96, 4, 512, self.checkpoint.hash)
        self.subjects = [make_subject(*sizes, name="anna"), make_subject(*sizes)]
        sentences = st.lists(st.sampled_from(PHRASES), min_size=1, max_size=3).map(" and ".join)
        self.cases = st.tuples(
            st.one_of(sentences, joined([*WORDS, LONG_NUMBER]), st.text(max_size=40)),
            st.one_of(st.just("blurry"), joined(WORDS), st.text(max_size=40)),
        )

    def __call__(self, case) -> str:
        text = self.encode(self.clip, self.checkpoint, self.subjects, *case)
        for conditioning in (text.positive, text.negative):
            for embeddings, options in conditioning:
                if embeddings.shape[1] % 77 or not embeddings.isfinite().all():
                    raise Wrong(f"conditioning {tuple(embeddings.shape)}")
                if not options["pooled_output"].isfinite().all():
                    raise Wrong("pooled text that is not finite")
        return RIGHT
