"""Apply MM-Diff switched off: what the picture is without it, from the same graph."""

import sys

import torch

from conftest import PACK

apply = sys.modules[f"{PACK}.nodes.apply"]


def test_switched_off_it_gives_the_model_and_the_plain_text(tiny, checkpoint):
    texts = {"positive": "a man<|subj|> on the beach", "negative": "blurry"}
    when = {"fuse_scale": 0.8, "start_percent": 0.0, "end_percent": 1.0}
    given = {"model": tiny.model, "clip": tiny.clip, "mmdiff": checkpoint, "subjects": {}}
    model, *conditionings = apply.MMDiffApply.execute(**given, **texts, **when, enabled=False).args
    assert model is tiny.model
    for conditioning, text in zip(conditionings, ("a man on the beach", "blurry"), strict=True):
        [[embeddings, options]] = conditioning
        [[expected, wanted]] = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text))
        assert torch.equal(embeddings, expected)
        assert torch.equal(options["pooled_output"], wanted["pooled_output"])


def test_prompts_saved_before_the_switch_stay_valid():
    schema = apply.MMDiffApply.GET_SCHEMA()
    assert [given.id for given in schema.inputs if given.optional] == ["enabled"]
