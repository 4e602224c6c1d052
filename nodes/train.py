"""Training in a graph: a data folder becomes an MM-Diff checkpoint of the connected base."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..mmdiff_model.adapter import PORTRAIT, SUBJECT
from ..mmdiff_model.checkpoint import load_checkpoint
from .checks import NOT_CONNECTED, check_option, checked, validation
from .folders import plain_name, shown
from .sockets import FACE_SOCKETS, MMDiff

FOLDER = "mmdiff_training"
PREVIEW_STEPS, PREVIEW_SIZE = 10, 512
CHECKPOINT_SECONDS = 300
# what a training's errors call by the configuration's keys, as the node shows it
SHOWN = {
    "choose another output": "choose another name",
    "Choose another output": "Choose another name",
    "choose another folder": "choose another name",
    "plan.batch_size on all processes": "batch_size",
    "plan.accumulation": "accumulation",
    "data.size": "size",
    "plan.rate or another plan.precision": "learning_rate",
    "run the same command": "queue the workflow",
}


class MMDiffTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffTrain",
            display_name="Train MM-Diff",
            category="MM-Diff/training",
            description="Trains MM-Diff on the connected base with pictures whose subjects are annotated. Cancelling "
            "keeps what was trained; running again with the same name goes on with it.",
            search_aliases=["mm-diff training", "fine-tune", "personalization"],
            inputs=[
                io.Model.Input("model", tooltip="The SDXL base. LoRAs on it count as a part of it."),
                io.Clip.Input("clip", tooltip="Its two text encoders."),
                io.Vae.Input("vae", tooltip="Its VAE. In half precision use one that is made for it."),
                io.ClipVision.Input("clip_vision", tooltip="The vision encoder, CLIP ViT-L/14 for SDXL."),
                io.String.Input(
                    "data",
                    default="",
                    placeholder="mmdiff_data/my_data",
                    tooltip="A folder of annotated pictures (.jpg, .npy and .json each) or a .tar of them: a full "
                    "path, or one below ComfyUI's input folder, such as mmdiff_data/my_data.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[SUBJECT, PORTRAIT],
                    tooltip="subject for anything, portrait for people by their faces (connect face_analysis).",
                ),
                io.String.Input(
                    "name",
                    default="my_subjects",
                    tooltip=f"Folder of this training in output/{FOLDER}: its state, mmdiff.safetensors and log.csv.",
                ),
                io.Int.Input("steps", default=2000, min=1, max=1_000_000, tooltip="Steps in all, also when going on."),
                io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="Pictures in one pass."),
                io.Int.Input(
                    "accumulation", default=4, min=1, max=256, tooltip="Passes in one step: more cost time, no memory."
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=1e-1, step=1e-6, round=1e-7, tooltip="Its peak."
                ),
                io.Int.Input(
                    "size", default=1024, min=64, max=2048, step=64, tooltip="Side of the pictures in pixels."
                ),
                io.Int.Input(
                    "lora_rank", default=64, min=1, max=256, tooltip="Rank of the UNet's LoRAs.", advanced=True
                ),
                io.Float.Input(
                    "constraint_weight",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly each subject's attention is held to its mask; 0 trains without.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    tooltip="The UNet's blocks keep their inputs alone and run again: less memory, more time.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The new weights and all noise come from it. It stays the same when a training goes on.",
                ),
                io.MultiType.Input(
                    "face_analysis",
                    types=FACE_SOCKETS,
                    optional=True,
                    tooltip="InsightFace, needed by portrait. Load Face Analysis gives one.",
                ),
            ],
            outputs=[
                MMDiff.Output(display_name="mmdiff", tooltip="What was trained, for the other MM-Diff nodes."),
                io.Image.Output(display_name="loss plot", tooltip="The loss over all steps."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls, model, clip, vae, clip_vision, data: str, name: str, face_analysis=None, **options
    ) -> io.NodeOutput:
        from ..mmdiff_model.training.copies import copy_base
        from ..mmdiff_model.training.logs import CsvLog
        from ..mmdiff_model.training.plot import draw_losses
        from ..mmdiff_model.training.processes import Processes
        from ..mmdiff_model.training.records import Records
        from ..mmdiff_model.training.session import Session

        device = comfy.model_management.get_torch_device()
        settings = settings_of(output_folder(name), device, **options)
        records = Records.open([data_path(data)])
        with torch.inference_mode(False), ExitStack() as at_the_end, named_as_shown():
            find_face = face_finder(face_analysis, settings.variant)
            base = copy_base(model, clip, vae, clip_vision, settings.plan.dtype, find_face)
            session = Session(settings, base, records, Processes(device))
            at_the_end.callback(session.close)
            before = session.loop.step
            log = CsvLog(settings.output, before)
            losses = log.losses()
            bar = comfy.utils.ProgressBar(settings.plan.steps)

            def after(step: int, figures: dict[str, float]) -> None:
                log.write(step, figures)
                losses.append((step, figures["loss"]))
                preview = None
                if step % PREVIEW_STEPS == 0:
                    preview = "JPEG", draw_losses(losses, settings.plan.steps), PREVIEW_SIZE
                bar.update_absolute(step, preview=preview)

            try:
                session.run(after=after)
            except comfy.model_management.InterruptProcessingException:
                session.keep()
                raise
        plot = np.array(draw_losses(losses, max(settings.plan.steps, before)))
        plot = torch.from_numpy(plot).float()[None] / 255
        preview = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(told(before, settings.plan.steps)).as_dict()
        return io.NodeOutput(load_checkpoint(session.checkpoint), plot, ui=preview)

    @classmethod
    def fingerprint_inputs(cls, data: str | None = None, **options) -> str:
        """Also of the records, which change under the same name; ComfyUI asks for it at each run, so no map is read."""
        from ..mmdiff_model.training.records import Records

        if data is None:
            return ""
        records = Records.open([data_path(data)])
        return f"{records.digest()} {records.map_times()}"

    @classmethod
    def validate_inputs(cls, data=None, name=None, variant=None, face_analysis=NOT_CONNECTED) -> bool | str:
        return validation(
            lambda: not isinstance(data, str) or data_path(data),
            lambda: not isinstance(name, str) or output_folder(name),
            lambda: check_option("variant", variant, (SUBJECT, PORTRAIT)),
            lambda: face_analysis is not NOT_CONNECTED or face_finder(None, variant),
        )


def told(before: int, steps: int) -> str:
    """What the node says of a training that had `before` steps and has `steps` now."""
    if before >= steps:
        return f"This training was finished at step {before}. Raise steps to go on with it, or choose another name."
    return f"Trained from step {before} to {steps}." if before else f"Trained {steps} step{'s' if steps > 1 else ''}."


@contextmanager
def named_as_shown() -> Iterator[None]:
    """A training's errors with the node's inputs in place of the configuration's keys."""
    try:
        yield
    except (ValueError, ArithmeticError, OSError) as error:
        message = str(error)
        for key, word in SHOWN.items():
            message = message.replace(key, word)
        if message == str(error):
            raise
        raise type(error)(message) from error


def settings_of(output: Path, device: torch.device, **options):
    """The training's settings from the node's widgets."""
    from ..mmdiff_model.training.config import Data, Settings
    from ..mmdiff_model.training.constraint import MASKED, NONE
    from ..mmdiff_model.training.objective import Losses
    from ..mmdiff_model.training.plan import Plan
    from ..mmdiff_model.training.trainable import Shape

    plan = Plan(
        steps=options["steps"],
        rate=options["learning_rate"],
        warmup=min(500, options["steps"] // 10),
        ema_steps=max(1, min(1000, options["steps"] // 10)),
        batch_size=options["batch_size"],
        accumulation=options["accumulation"],
        precision=precision_on(device),
    )
    weight = options["constraint_weight"]
    return Settings(
        output=output,
        variant=options["variant"],
        data=Data((), options["size"]),
        plan=plan,
        shape=Shape(lora_rank=options["lora_rank"]),
        losses=Losses(MASKED if weight else NONE, weight, snr_limit=5.0),
        gradient_checkpointing=options["gradient_checkpointing"],
        checkpoint_seconds=CHECKPOINT_SECONDS,
        seed=options["seed"],
    )


def precision_on(device: torch.device) -> str:
    """What a base is trained in: half precision on GPUs, bfloat16 where they have it."""
    if device.type == "cpu":
        return "fp32"
    return "bf16" if comfy.model_management.should_use_bf16(device) else "fp16"


def output_folder(name: str) -> Path:
    """The folder of a training. Raises ValueError on a name that leads elsewhere."""
    root = Path(folder_paths.get_output_directory()) / FOLDER
    return root / plain_name("name", name, "is not a plain folder name")


def data_path(data: str) -> Path:
    """A full path, or one below the input folder. Raises ValueError where nothing is given or can be there."""
    if not data.strip():
        raise ValueError(
            "data: it is empty. Name a folder or a .tar of annotated pictures; the help page has the format."
        )
    try:
        path = Path(folder_paths.get_input_directory()) / Path(data.strip()).expanduser()
        path.lstat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError) as error:
        problem = f"data: '{shown(data)}' cannot be the place of anything ({error})"
        raise ValueError(f"{problem}. Name a folder or a .tar of annotated pictures.") from error
    return path


def face_finder(face_analysis, variant: str):
    """What finds faces for `portrait`. Raises ValueError where it is missing."""
    if variant != PORTRAIT:
        return None
    if face_analysis is None:
        raise ValueError("face_analysis: a portrait training reads faces. Connect Load Face Analysis (MM-Diff).")
    from ..mmdiff_model.faces import FaceFinder

    return FaceFinder(face_analysis)
