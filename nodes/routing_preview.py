"""Where each subject went: its routing weights as colour over the picture."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..mmdiff_model.drawing import heat_maps
from ..mmdiff_model.sampling import last_routing, why_no_routing
from .checks import checked


class MMDiffRoutingPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffRoutingPreview",
            display_name="MM-Diff Routing Preview",
            category="MM-Diff",
            description="Shows which part of the picture each subject was given, for routing 'masks' and 'auto': "
            "one picture per subject, in the order of the subjects.",
            search_aliases=["heat map", "attention map", "daam"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that Apply MM-Diff gave and the KSampler used."),
                io.Image.Input("images", tooltip="The decoded pictures of that KSampler."),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How strongly the colours cover the picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="maps", tooltip="For each picture, one map per subject.")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, model, images: Tensor, opacity: float) -> io.NodeOutput:
        weights = last_routing(model)
        if weights is None:
            why = ui.PreviewText(f"No map: {why_no_routing(model)}")
            return io.NodeOutput(images, ui={**ui.PreviewImage(images, cls=cls).as_dict(), **why.as_dict()})
        maps = torch.cat([heat_maps(image, weights[i % len(weights)], opacity) for i, image in enumerate(images)])
        return io.NodeOutput(maps, ui=ui.PreviewImage(maps, cls=cls))
