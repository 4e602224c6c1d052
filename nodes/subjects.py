"""Where and how strongly a subject acts, and subjects as files."""

from dataclasses import replace

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..mmdiff_model.prompt import NAME, composed
from ..mmdiff_model.regions import expand_region, feather_region
from ..mmdiff_model.subject_file import load_subject, save_subject
from .apply import range_inputs
from .checks import check_range, checked, validation
from .folders import file_name, find, new_file, register, shown, state_of, writing
from .images import check_mask
from .sockets import MMDiffSubject

FOLDER = register("mmdiff_subjects", ".safetensors")
MAX_BORDER = 1024
MAX_SIDE = 16384  # pixels; ComfyUI paints no larger pictures


def subject_input() -> io.Input:
    return MMDiffSubject.Input(
        "subject", tooltip="A subject from Encode MM-Diff Subject, Mix MM-Diff Subjects or a subject file."
    )


class MMDiffSubjectRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffSubjectRegion",
            display_name="MM-Diff Subject Region",
            category="MM-Diff",
            description="Says where a subject goes (with routing 'masks'), how strongly and when it acts, and by "
            "which name a prompt calls it.",
            search_aliases=["regional", "attention mask", "subject mask"],
            inputs=[
                subject_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject may appear, any size. Used by routing 'masks'; without one the "
                    "subject gets what other masks leave.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Multiplies fuse_scale for this subject. 0 switches its image term off.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Lets the prompt call it by name, as in: a woman<|subj:anna|>. Empty keeps the name it "
                    "has.",
                ),
                *range_inputs(
                    "This subject acts from this part of sampling on (0 to 1); before it, its class word is an "
                    "ordinary word.",
                    "This subject acts up to this part of sampling (0 to 1); after it, its class word is an ordinary "
                    "word.",
                ),
                io.Int.Input(
                    "expand",
                    default=0,
                    min=-MAX_BORDER,
                    max=MAX_BORDER,
                    optional=True,
                    tooltip="Moves the mask's border outwards by this many pixels of the mask, as Grow Mask does; "
                    "below 0 inwards.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=MAX_BORDER,
                    optional=True,
                    tooltip="Fades the mask's border, after expand, over this many pixels of the mask to each side. 0 "
                    "leaves it as painted.",
                ),
            ],
            outputs=[MMDiffSubject.Output(display_name="subject", tooltip="The same identity with its region.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        subject,
        strength: float,
        name: str,
        start_percent: float,
        end_percent: float,
        mask=None,
        expand: int = 0,
        feather: int = 0,
    ) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        name = trigger_name(name)
        if mask is not None:
            mask = check_mask("mask", mask)
            if len(mask) > 1:
                raise ValueError(
                    f"mask: got a batch of {len(mask)} masks for one subject. Pick one, or join them with a mask "
                    "composite."
                )
            mask = mask[0]
            if max(mask.shape) > MAX_SIDE:
                raise ValueError(
                    f"mask: it has {mask.shape[1]} x {mask.shape[0]} px, more than {MAX_SIDE} to a side. Give one of "
                    "the picture's size or smaller."
                )
        region = mask if mask is not None else subject.region
        if expand or feather:
            region = shaped(region, expand, feather)
        return io.NodeOutput(
            replace(
                subject,
                strength=strength,
                name=name or subject.name,
                region=region,
                start_percent=start_percent,
                end_percent=end_percent,
            )
        )

    @classmethod
    def validate_inputs(cls, name=None, start_percent=None, end_percent=None) -> bool | str:
        return validation(
            lambda: not isinstance(name, str) or trigger_name(name), lambda: check_range(start_percent, end_percent)
        )


def trigger_name(name: str) -> str:
    """The name composed and without spaces around it, as a trigger may give it, or none. Raises ValueError on another,
    and on a number, which is a place."""
    if (stripped := composed(name.strip())).isdecimal():
        raise ValueError(
            f"name: '{shown(name)}' is a number, by which a trigger calls the subject in that place. Give it letters."
        )
    if not NAME.fullmatch(stripped):
        raise ValueError(
            f"name: '{shown(name)}' cannot stand in a trigger. Use at most 200 characters, none of them '|', '<', '>' "
            "or a control character."
        )
    return stripped


def shaped(region: Tensor | None, expand: int, feather: int) -> Tensor:
    """The region, on the CPU, with its border moved and then faded. Raises ValueError if it is or becomes nothing."""
    if region is None:
        name = "expand" if expand else "feather"
        raise ValueError(f"{name}: this subject has no mask to change. Connect one to mask, or set {name} to 0.")
    grown = expand_region(region.to(comfy.model_management.get_torch_device()), expand)
    if region.any() and not grown.any():
        raise ValueError(
            f"expand: {expand} leaves nothing of the mask ({region.shape[1]} x {region.shape[0]} px). Choose a number "
            "closer to 0."
        )
    return (feather_region(grown, feather) if feather else grown).cpu()


class MMDiffSaveSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffSaveSubject",
            display_name="Save MM-Diff Subject",
            category="MM-Diff",
            description="Writes a subject to models/mmdiff_subjects. Load it later without the photos, CLIP vision "
            "or face models.",
            search_aliases=["save identity", "face model"],
            inputs=[
                subject_input(),
                io.String.Input("filename", default="subject", tooltip="Name of the file, without .safetensors."),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="file", tooltip="The file's name, for the file input of Load MM-Diff Subject."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, subject, filename: str, overwrite: bool) -> io.NodeOutput:
        path = new_file(FOLDER, filename, overwrite)
        with writing("filename", path):
            save_subject(subject, path, overwrite)
        return io.NodeOutput(path.name, ui=ui.PreviewText(f"Saved {path.name} to {path.parent}"))

    @classmethod
    def validate_inputs(cls, filename=None) -> bool | str:
        return validation(lambda: not isinstance(filename, str) or file_name(filename))


class MMDiffLoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffLoadSubject",
            display_name="Load MM-Diff Subject",
            category="MM-Diff",
            description="Reads a subject that Save MM-Diff Subject wrote, and shows its thumbnail.",
            search_aliases=["load identity", "face model"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A subject file in models/mmdiff_subjects.",
                )
            ],
            outputs=[
                MMDiffSubject.Output(
                    display_name="subject", tooltip="The subject, for Apply MM-Diff with the checkpoint that made it."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, file: str) -> io.NodeOutput:
        subject = load_subject(find(FOLDER, file, "file"))
        preview = None if subject.thumbnail is None else ui.PreviewImage(subject.thumbnail[None], cls=cls)
        return io.NodeOutput(subject, ui=preview)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        return state_of(FOLDER, file, "file")
