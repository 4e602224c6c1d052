"""Development pack that the tests and the demo link into custom_nodes: tiny random models in place of large ones."""

import ctypes
import gc
import sys

from comfy_api.latest import ComfyExtension, io

from .models import make_clip, make_clip_vision, make_model, make_vae


class MMDiffTinyModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffTinyModels",
            display_name="Tiny Models (MM-Diff development)",
            category="MM-Diff/development",
            description="An SDXL with random weights, small enough for a test on a CPU.",
            inputs=[io.Int.Input("seed", default=20, min=0, max=2**31, tooltip="Seed of every weight.")],
            outputs=[
                io.Model.Output(display_name="model", tooltip="UNet with 17 cross-attentions."),
                io.Clip.Output(display_name="clip", tooltip="Both text encoders."),
                io.Vae.Output(display_name="vae", tooltip="Four latent channels, 8 pixels each."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="Width 128, projection 96."),
            ],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(make_model(seed), make_clip(seed), make_vae(seed), make_clip_vision(seed))


class MMDiffTinyTrim(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffTinyTrim",
            display_name="Trim Memory (MM-Diff development)",
            category="MM-Diff/development",
            description="Collects garbage, and lets the C library give back what it keeps for later (Linux).",
            inputs=[io.Int.Input("number", default=0, min=0, max=2**31, tooltip="Another number runs it again.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, number: int) -> io.NodeOutput:
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        return io.NodeOutput()


class TinyPack(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [MMDiffTinyModels, MMDiffTinyTrim]


async def comfy_entrypoint() -> TinyPack:
    return TinyPack()
