"""The small world in a graph: models that come with the pack, and characters drawn by code."""

from random import Random

import numpy as np
import torch
from comfy_api.latest import io

from ..mmdiff_model.checkpoint import load_checkpoint
from ..small_world import ADAPTER_FILE, WEIGHTS
from ..small_world.drawn.looks import WORDS, sample_look
from ..small_world.drawn.poses import ACTIONS, REFERENCE_ACTIONS
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
            description="A very small SDXL family with an MM-Diff checkpoint that comes with the pack. It knows drawn "
            "characters in a few places and paints 128 x 128 pixels in seconds, on any machine.",
            search_aliases=["mm-diff demo", "small world", "test models"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The small UNet, for Apply MM-Diff."),
                io.Clip.Output(display_name="clip", tooltip="Both small text encoders."),
                io.Vae.Output(display_name="vae", tooltip="The small VAE. Use empty latents of 128 x 128."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The small vision encoder."),
                MMDiff.Output(display_name="mmdiff", tooltip="The MM-Diff checkpoint trained on these models."),
            ],
        )

    @classmethod
    @checked
    def execute(cls) -> io.NodeOutput:
        from ..small_world.family.models import load_clip, load_model, load_vae, load_vision

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
        from ..small_world.drawn.drawing import reference

        random = Random(f"demo {word} {seed}")
        look = sample_look(random, held_out=True, word=word)
        pictures = [reference(look, random, random.choice(REFERENCE_ACTIONS), PICTURE_SIZE) for _ in range(photos)]
        return io.NodeOutput(torch.from_numpy(np.stack(pictures)).float() / 255)


class MMDiffDemoScenes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffDemoScenes",
            display_name="MM-Diff Demo Scenes",
            category="MM-Diff/demo",
            description="Draws pictures to train on, each with one character in a place, and knows where it stands and "
            "what a caption would say: for Write Training Record, in place of a detector, a segmenter and a captioner.",
            search_aliases=["mm-diff demo", "training data", "small world"],
            inputs=[
                io.Combo.Input("word", options=list(WORDS), tooltip="The class word: what the characters are."),
                io.Int.Input("count", default=48, min=1, max=512, tooltip="How many pictures, each of another one."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Another seed, other characters and places; never one of MM-Diff Demo Character.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, 128 x 128."),
                io.Mask.Output(display_name="masks", tooltip="Where the character is, a mask for each picture."),
                io.String.Output(display_name="captions", tooltip="A line for each picture."),
                io.String.Output(display_name="word", tooltip="The class word again, for words."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, word: str, count: int, seed: int) -> io.NodeOutput:
        from ..small_world.drawn.scenes import scene_of

        scenes = [scene_of(word, seed, number) for number in range(count)]
        pictures, masks = (
            torch.from_numpy(np.stack(arrays)).float() / 255
            for arrays in ([scene.picture for scene in scenes], [scene.masks[0] for scene in scenes])
        )
        return io.NodeOutput(pictures, masks, "\n".join(scene.caption for scene in scenes), word)
