"""Clones and re-queues: nothing that one node or run does is seen by another."""

import ctypes
import gc
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neighbour_packs as packs
from helpers import ONE_STEP, encode, left_half, noise_for, random_subject, sample
from mmdiff_model.sampling import apply_subjects, last_routing
from mmdiff_model.sampling.routing import AUTO, MASKS, OFF

pytestmark = pytest.mark.hosts

REQUEUES, EDIT_EVERY, WARM_UP = 1000, 20, 120


@pytest.fixture(scope="module")
def subjects(checkpoint):
    return [random_subject(checkpoint, 1, region=left_half()), random_subject(checkpoint, 2)]


@pytest.fixture(scope="module")
def text(tiny, checkpoint, subjects):
    return encode(tiny, checkpoint, subjects)


@pytest.mark.parametrize("routing", [OFF, MASKS, AUTO])
def test_bypass_is_bit_exact(tiny, checkpoint, subjects, text, routing):
    """The model without ours samples as it did before ours ran; its patches and options are what they were."""
    plain = sample(tiny.model, text)
    options = repr(tiny.model.model_options)
    patched = sample(apply_subjects(tiny.model, checkpoint, subjects, routing=routing), text)
    assert not torch.equal(patched, plain)
    assert torch.equal(sample(tiny.model, text), plain)
    assert repr(tiny.model.model_options) == options
    assert not tiny.model.patches


def test_a_run_puts_nothing_on_its_model(tiny, checkpoint, subjects, text):
    """The attention patches belong to the run; the model holds one wrapper and the LoRAs, before and after."""
    model = apply_subjects(tiny.model, checkpoint, subjects)
    options = repr(model.model_options)
    sample(model, text, sigmas=ONE_STEP)
    assert repr(model.model_options) == options
    assert "attn2" not in model.model_options["transformer_options"].get("patches_replace", {})


@pytest.mark.parametrize(
    "later",
    [
        packs.add_image_prompt,
        packs.add_plain_replace,
        packs.add_context_patch,
        packs.add_output_patch,
    ],
)
def test_editing_a_later_node_changes_nothing_upstream(tiny, checkpoint, subjects, text, later):
    """Ours is cached, a node after it is edited and queued again: ours alone gives the bits that it gave."""
    ours = apply_subjects(tiny.model, checkpoint, subjects)
    alone = sample(ours, text, sigmas=ONE_STEP)
    edited = [later(ours) for _ in range(2)]
    results = [sample(model, text, sigmas=ONE_STEP) for model in edited]
    assert torch.equal(*results)
    assert not torch.equal(results[0], alone)
    assert torch.equal(sample(ours, text, sigmas=ONE_STEP), alone)


def test_editing_ours_changes_nothing_upstream(tiny, checkpoint, subjects, text):
    """A pack before ours is cached, ours is edited and queued again with other strengths and subjects."""
    before = packs.add_image_prompt(tiny.model)
    alone = sample(before, text, sigmas=ONE_STEP)
    first = sample(apply_subjects(before, checkpoint, subjects, 0.8), text, sigmas=ONE_STEP)
    stronger = sample(apply_subjects(before, checkpoint, subjects, 1.6), text, sigmas=ONE_STEP)
    apply_subjects(before, checkpoint, subjects[:1], 0.5)
    assert not torch.equal(first, stronger)
    assert torch.equal(sample(apply_subjects(before, checkpoint, subjects, 0.8), text, sigmas=ONE_STEP), first)
    assert torch.equal(sample(before, text, sigmas=ONE_STEP), alone)


def test_two_branches_of_one_graph(tiny, checkpoint, subjects, text):
    """Both branches run in turns, each with its own strength and routing, and keep their records apart."""
    off = apply_subjects(tiny.model, checkpoint, subjects, routing=OFF)
    masks = apply_subjects(tiny.model, checkpoint, subjects, routing=MASKS)
    auto = apply_subjects(tiny.model, checkpoint, subjects, routing=AUTO)
    first = [sample(model, text, sigmas=ONE_STEP) for model in (off, masks, auto)]
    again = [sample(model, text, sigmas=ONE_STEP) for model in (auto, masks, off)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert last_routing(off) is None
    assert last_routing(masks).shape == (1, 2, 64, 64)
    assert last_routing(auto).shape == (1, 2, 4, 4)


def test_two_of_ours_in_a_row_are_refused(tiny, checkpoint, subjects):
    ours = apply_subjects(tiny.model, checkpoint, subjects[:1])
    with pytest.raises(ValueError, match="model: this model already carries MM-Diff subjects"):
        apply_subjects(ours, checkpoint, subjects[1:])


def test_subjects_are_not_written_to(tiny, checkpoint, subjects, text):
    before = [replace(subject, tokens=subject.tokens.clone(), cls=subject.cls.clone()) for subject in subjects]
    for routing in (MASKS, AUTO):
        sample(apply_subjects(tiny.model, checkpoint, subjects, routing=routing), text, sigmas=ONE_STEP)
    for subject, copy in zip(subjects, before, strict=True):
        assert torch.equal(subject.tokens, copy.tokens)
        assert torch.equal(subject.cls, copy.cls)


def resident_bytes() -> int:
    """The process's resident set, with what the allocator only keeps in reserve handed back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident set from Linux's /proc")
def test_a_thousand_requeues_leave_memory_flat(tiny, checkpoint, subjects, text, record_property, monkeypatch):
    """One step each, with a new seed each time; each twentieth time our node is edited too, every routing in turn."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps every record
    everywhere = [replace(subject, region=None) for subject in subjects]
    edits = ((everywhere, OFF), (subjects, MASKS), (everywhere, AUTO))
    model = tiny.model

    def requeue(number: int) -> None:
        nonlocal model
        if number % EDIT_EVERY == 0:
            applied, routing = edits[number // EDIT_EVERY % 3]
            model = apply_subjects(tiny.model, checkpoint, applied, 0.5 + number % 7 / 10, routing=routing)
        sample(model, text, 1.0, noise=noise_for((8, 8), seed=number), sigmas=ONE_STEP)

    for number in range(WARM_UP):
        requeue(number)
    start = resident_bytes()
    for number in range(REQUEUES):
        requeue(number)
    end = resident_bytes()
    record_property("resident_start", start)
    record_property("resident_end", end)
    print(f"\nresident set: {start / 2**20:.1f} MiB, after {REQUEUES} re-queues {end / 2**20:.1f} MiB")
    assert end < start * 1.01
