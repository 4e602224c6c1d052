"""The benchmark's tables, filled from the tiny models: what is timed runs, and the rows are what the page shows."""

import pytest
import torch

from benchmarking import sampling
from benchmarking.attentions import make_attentions
from benchmarking.edits import make_edits
from benchmarking.encoders import make_encoders
from benchmarking.steps import make_steps
from benchmarking.turns import Setting, table, take_turns
from tiny_pack.models import TEXT, UNET, VISION

ROUTED = [f"{count} subjects, routing {routing}" for routing in ("off", "masks", "auto") for count in (2, 4)]


@pytest.fixture
def tiny_widths(monkeypatch):
    monkeypatch.setattr(sampling, "CLS", VISION["projection_dim"])
    monkeypatch.setattr(sampling, "TEXT", UNET["context_dim"])
    monkeypatch.setattr(sampling, "POOLED", TEXT["clip_g"]["hidden_size"])


def names(rows: list[dict]) -> list[str]:
    return [row["name"] for row in rows]


def test_steps_and_edits(tiny, checkpoint, tiny_widths):
    steps = take_turns(make_steps(tiny.model, checkpoint, 16, steps=1), rounds=1)
    one = ["plain", "a patch that does nothing", "1 subject of 1 photo", "1 subject of 12 photos"]
    assert names(steps) == one + ROUTED
    assert all(row["seconds"] > 0 and row["memory"] > 0 for row in steps)
    assert len(take_turns(make_edits(tiny.model, checkpoint, 16), rounds=1)) == 4


def test_attentions():
    rows = take_turns(make_attentions(8, torch.float32), rounds=1)
    assert names(rows)[1:] == ["1 subject of 1 photo", "1 subject of 12 photos", *ROUTED[::2]]


def test_encoders(tiny, checkpoint, tiny_widths):
    tables = make_encoders(tiny.clip_vision, tiny.clip, checkpoint)
    assert list(tables) == ["a subject of 1 photo", "a subject of 4 photos", "a prompt pair"]
    assert all(len(take_turns(settings, rounds=1)) == 2 for settings in tables.values())


def test_ratios_are_to_the_first_row_of_the_same_round():
    plain, ours = (Setting(name, lambda: (0.0, 0.0)) for name in ("plain", "ours"))
    plain.seconds, ours.seconds = [1.0, 2.0, 4.0], [1.5, 2.0, 8.0]
    plain.megabytes, ours.megabytes = [100.0] * 3, [110.0] * 3
    _, row = table([plain, ours])
    assert row["ratio"] == (1.5, 1.0, 2.0)
    assert row["quietest"] == 1.5 and row["seconds"] == 2.0 and row["memory"] == pytest.approx(1.1)
