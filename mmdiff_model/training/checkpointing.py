"""Gradient checkpointing of the UNet: its blocks keep their inputs alone and run again in the backward pass."""

from collections.abc import Callable
from functools import partial

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(unet: nn.Module) -> Callable[[], None]:
    """Checkpoints every residual and transformer block of a UNet, until what it returns is called."""
    blocks = [block for block in unet.modules() if isinstance(block, (BasicTransformerBlock, ResBlock))]
    for block in blocks:
        block.forward = partial(run, block.forward)

    def undo() -> None:
        for block in blocks:
            del block.forward

    return undo


def run(forward: Callable[..., Tensor], *inputs: Tensor, transformer_options: dict | None = None, **options) -> Tensor:
    """forward, and again in the backward pass with the options of the first time: the UNet changes them on its way."""
    if transformer_options is not None:
        options["transformer_options"] = dict(transformer_options)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
