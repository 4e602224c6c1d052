"""The small world in a graph: models that come with the pack, and characters drawn by code."""

from random import Random

import numpy as np
import torch
from comfy_api.latest import io

from ..mmdiff_model.checkpoint import load_checkpoint
from ..small_world import ADAPTER_FILE, WEIGHTS
from ..small_world.drawing import reference
from ..small_world.looks import WORDS, sample_look
from ..small_world.poses import ACTIONS, REFERENCE_ACTIONS
from .checks import checked
from .sockets import MMDiff

PICTURE_SIZE = 256


class MMDiffDemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffDemoModels",
            display_name="MM-Diff Demo Models",
            category="MM-Diff/demo",
            description="A very small SDXL family with an MM-Diff adapter that comes with the pack. It knows drawn "
            "characters in a few places and paints 128 x 128 pixels in seconds, on any machine.",
            search_aliases=["mm-diff demo", "small world", "test models"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The small UNet, for Apply MM-Diff."),
                io.Clip.Output(display_name="clip", tooltip="Both small text encoders."),
                io.Vae.Output(display_name="vae", tooltip="The small VAE. Use empty latents of 128 x 128."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The small vision encoder."),
                MMDiff.Output(display_name="mmdiff", tooltip="The MM-Diff adapter trained on these models."),
            ],
        )

    @classmethod
    @checked
    def execute(cls) -> io.NodeOutput:
        from ..small_world.models import load_clip, load_model, load_vae, load_vision

        models = (load(WEIGHTS) for load in (load_model, load_clip, load_vae, load_vision))
        return io.NodeOutput(*models, load_checkpoint(WEIGHTS / ADAPTER_FILE))


class MMDiffDemoCharacter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffDemoCharacter",
            display_name="MM-Diff Demo Character",
            category="MM-Diff/demo",
            description="Draws a character that the demo models have never seen, as a reference photo. Prompts of the "
            f"demo know its class word, {', '.join(ACTIONS)}, and places such as in a park, on a beach or in the snow.",
            search_aliases=["mm-diff demo", "reference image"],
            inputs=[
                io.Combo.Input("word", options=list(WORDS), tooltip="The class word: what the character is."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed, another character: hair or ears, hat, glasses, clothes and all colours.",
                ),
                io.Int.Input(
                    "photos",
                    default=1,
                    min=1,
                    max=8,
                    optional=True,
                    tooltip="How many pictures of this one character, each in a pose of its own.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The character alone on white.")],
        )

    @classmethod
    @checked
    def execute(cls, word: str, seed: int, photos: int = 1) -> io.NodeOutput:
        random = Random(f"demo {word} {seed}")
        look = sample_look(random, held_out=True, word=word)
        pictures = [reference(look, random, random.choice(REFERENCE_ACTIONS), PICTURE_SIZE) for _ in range(photos)]
        return io.NodeOutput(torch.from_numpy(np.stack(pictures)).float() / 255)
