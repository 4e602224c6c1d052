"""Random subjects, masks and sampling runs that several tests share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from mmdiff_model.checkpoint import Checkpoint
from mmdiff_model.sampling.conditionings import Conditioning
from mmdiff_model.sampling.rows import Call, Row
from mmdiff_model.sampling.step import Step
from mmdiff_model.subject import Subject
from mmdiff_model.text import TextEncoding, encode_text

SIGMAS = (4.1, 0.7, 0.0)
ONE_STEP = (4.1, 0.0)
ONE_PROMPT = "a man<|subj|> dancing"
TWO_PROMPT = "a man<|subj|> and a woman<|subj|> dancing"


def random_subject(checkpoint: Checkpoint, seed: int, photos: int = 1, **fields) -> Subject:
    """A subject of the checkpoint's sizes with seeded random CLS and tokens."""
    sizes = checkpoint.sizes
    random = torch.Generator().manual_seed(seed)
    cls = torch.randn(sizes.cls_dim, generator=random)
    tokens = torch.randn(photos, sizes.num_tokens, sizes.context_dim, generator=random)
    return Subject(cls, tokens, checkpoint.variant, checkpoint.hash, **fields)


def left_half(height: int = 64, width: int = 64) -> Tensor:
    """A mask that is one on the left half."""
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def encode(tiny, checkpoint: Checkpoint, subjects: Sequence[Subject], prompt: str | None = None) -> TextEncoding:
    """The conditionings of a prompt with as many class words as subjects, and of a negative prompt."""
    prompt = prompt or (ONE_PROMPT if len(subjects) == 1 else TWO_PROMPT)
    return encode_text(tiny.clip, checkpoint, subjects, prompt, "blurry")


def noise_for(size: tuple[int, int] = (16, 16), batch: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))


def guider_for(model: ModelPatcher, text: TextEncoding, cfg: float = 5.0) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text.positive, text.negative)
    guider.set_cfg(cfg)
    return guider


def run(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor | None = None,
    sigmas: Sequence[float] = SIGMAS,
    latent: Tensor | None = None,
    callback=None,
) -> Tensor:
    """Euler with a guider's conditionings -> latents."""
    noise = noise_for() if noise is None else noise
    latent = torch.zeros_like(noise) if latent is None else latent
    return guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        callback=callback,
        disable_pbar=True,
        seed=0,
    )


def sample(model: ModelPatcher, text: TextEncoding, cfg: float = 5.0, **how) -> Tensor:
    """Euler with ordinary guidance -> latents; `how` goes to run()."""
    return run(guider_for(model, text, cfg), **how)


@dataclass
class AttentionRecorder:
    """Keeps what every cross-attention gave (after to_out), call by call, and the layout of its batch."""

    outputs: list[Tensor] = field(default_factory=list)
    layouts: list[list[int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, out: Tensor, extra_options: dict) -> Tensor:
        self.outputs.append(out.clone())
        self.layouts.append(extra_options["cond_or_uncond"])
        self.sizes.append(tuple(extra_options["activations_shape"][2:]))
        return out

    def first(self, index: int = 0) -> Tensor:
        """The first attention's rows of a cond index (0 is positive in ordinary guidance), (b, h, w, width)."""
        part = self.outputs[0].chunk(len(self.layouts[0]))[self.layouts[0].index(index)]
        return part.unflatten(1, self.sizes[0])


def record(model: ModelPatcher, text: TextEncoding, sigmas: Sequence[float] = ONE_STEP, **how) -> AttentionRecorder:
    """Samples one step with a clone of the model and returns what its cross-attentions gave."""
    recorder = AttentionRecorder()
    model = model.clone()
    model.set_model_attn2_output_patch(recorder)
    sample(model, text, sigmas=sigmas, **how)
    return recorder


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def a_conditioning(subjects: tuple[int, ...], words: tuple = (), tokens: int = 77, number: int = 0) -> Conditioning:
    """A conditioning that calls those subjects."""
    return Conditioning(number, subjects, words, tokens, None, torch.zeros(1, tokens, 8))


def step_of(conditionings: Sequence[Conditioning], lengths: tuple[int, ...], latent: tuple[int, int], routing) -> Step:
    """The step of a call with a row of each conditioning, in which all subjects act."""
    rows = tuple(Row(conditioning, 0) for conditioning in conditionings)
    call = Call(rows, tuple(range(len(rows))), latent)
    acting = frozenset(range(len(lengths)))
    return Step(call, acting, lengths, latent, routing, tuple(conditionings)).prepare(torch.device("cpu"))
