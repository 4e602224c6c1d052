"""What MM-Diff did in a graph, in words, as JSON and as a picture."""

from comfy_api.latest import io, ui
from torch import Tensor

from .images import photos_from
from .sockets import FACE_SOCKETS


class MMDiffReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffReport",
            display_name="MM-Diff Report",
            category="MM-Diff",
            description="Tells what MM-Diff did: subjects and photos, class words, steps, regions, every patch on the "
            "model's attention and whose it is, and how like the pictures are to their subjects.",
            search_aliases=["debug", "inspect", "explain", "attention patches", "likeness", "what happened"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that Apply MM-Diff gave and the KSampler used."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The positive prompt from Apply MM-Diff. A sampling that has finished tells its own; this "
                    "one is read before.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded pictures of that KSampler. With them the report waits until they are there.",
                ),
                io.MultiType.Input(
                    "face_analysis",
                    types=FACE_SOCKETS,
                    optional=True,
                    tooltip="InsightFace, to compare the faces in the pictures with the subjects' own.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP ViT-L/14, to compare the pictures with what the prompt was given of each subject.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The report in plain lines."),
                io.String.Output(display_name="json", tooltip="The same as JSON."),
                io.Image.Output(display_name="picture", tooltip="The same on one sheet, with maps and pictures."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, positive=None, images: Tensor | None = None, face_analysis=None, clip_vision=None
    ) -> io.NodeOutput:
        from ..mmdiff_model.report.facts import gather
        from ..mmdiff_model.report.picture import draw_report
        from ..mmdiff_model.report.text import as_json, as_text

        pictures, trouble = [], []
        if images is not None:
            try:
                pictures = photos_from(images)
            except ValueError as error:
                trouble.append(str(error))
        facts = gather(model, positive, pictures, face_analysis, clip_vision, trouble)
        sheet = draw_report(facts, pictures)[None]
        return io.NodeOutput(as_text(facts), as_json(facts), sheet, ui=ui.PreviewImage(sheet, cls=cls))
