"""Scores of generated pictures: do they follow the prompt, and are they of the subjects?"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from .checks import NOT_CONNECTED, check_option, checked, validation
from .folders import find, plain_name, register, writing
from .images import photos_from
from .sockets import FACE_SOCKETS, MAX_SUBJECTS

if TYPE_CHECKING:
    from ..mmdiff_model.evaluation.matching import FaceMatcher
    from ..mmdiff_model.evaluation.recogniser import Recogniser

FOLDER = register("mmdiff_evaluation", ".json", ".onnx")
NONE = "none"


def model_names() -> list[str]:
    """The folders in models/mmdiff_evaluation that hold a config.json, at any depth, and `none`."""
    files = map(Path, folder_paths.get_filename_list(FOLDER))
    return [NONE, *sorted(file.parent.as_posix() for file in files if file.name == "config.json")]


def recogniser_names() -> list[str]:
    """The model folders, those that hold an .onnx file, and `none`."""
    files = map(Path, folder_paths.get_filename_list(FOLDER))
    folders = {file.parent.as_posix() for file in files if file.suffix == ".onnx"} - {"."}
    return [NONE, *sorted({*model_names()[1:], *folders})]


def model_input(name: str, tooltip: str, optional: bool = False, options: list[str] | None = None) -> io.Combo.Input:
    """A choice of a model's folder, `none` at first."""
    return io.Combo.Input(name, options=options or model_names(), default=NONE, optional=optional, tooltip=tooltip)


class MMDiffEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        reference = io.Image.Input("reference", tooltip="Photos of one subject; a batch is several photos of it.")
        return io.Schema(
            node_id="MMDiffEvaluate",
            display_name="Evaluate MM-Diff",
            category="MM-Diff",
            description="Scores pictures against their prompt and their subjects: CLIP-T, CLIP-I, DINO and faces. "
            "Writes a JSON file to the output folder. Downloads nothing.",
            search_aliases=["metrics", "clip score", "clip-t", "clip-i", "dino", "face similarity", "benchmark"],
            inputs=[
                io.Image.Input("images", tooltip="The generated pictures, all for one prompt."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="The prompt of the pictures, for CLIP-T. Triggers and weights are left out.",
                ),
                io.Autogrow.Input(
                    "references",
                    template=io.Autogrow.TemplateNames(
                        reference, names=[f"reference_{i + 1}" for i in range(MAX_SUBJECTS)], min=0
                    ),
                    tooltip="The photos of each subject. With none, only CLIP-T is measured.",
                ),
                model_input(
                    "clip_model",
                    "A CLIP model for CLIP-T and CLIP-I: a folder of models/mmdiff_evaluation with the files "
                    "of openai/clip-vit-large-patch14. 'none' leaves both out.",
                ),
                model_input(
                    "dino_model",
                    "A DINO model: a folder of models/mmdiff_evaluation with the files of "
                    "facebook/dino-vits16. 'none' leaves it out.",
                ),
                io.MultiType.Input(
                    "face_analysis",
                    types=FACE_SOCKETS,
                    optional=True,
                    tooltip="InsightFace, for the similarity of faces. Load Face Analysis gives one; those of other "
                    "packs work too.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="mmdiff_evaluation",
                    tooltip="Name of the JSON file in the output folder, as in Save Image: it may hold a folder and "
                    "%date% parts.",
                ),
                model_input(
                    "dinov2_model",
                    "A DINOv2 model beside DINO: a folder of models/mmdiff_evaluation with the files of "
                    "facebook/dinov2-base. 'none' leaves it out.",
                    optional=True,
                ),
                model_input(
                    "face_recogniser",
                    "A second judge of the faces that face_analysis finds: a portrait is made from buffalo_l's "
                    "own vector, so buffalo_l judges its own input. A folder of models/mmdiff_evaluation with an "
                    ".onnx file or a transformers model.",
                    optional=True,
                    options=recogniser_names(),
                ),
                model_input(
                    "box_model",
                    "Finds each subject by its class word, for XVerseBench's IP and the swap matrix: a folder "
                    "of models/mmdiff_evaluation with the files of IDEA-Research/grounding-dino-tiny.",
                    optional=True,
                ),
                io.String.Input(
                    "words",
                    default="",
                    optional=True,
                    tooltip="The class word of each subject for box_model, with commas between them. Left empty, "
                    "those before the triggers of the prompt.",
                ),
                io.Image.Input(
                    "unseen_photos",
                    optional=True,
                    tooltip="One further photo of each subject, in their order, that no subject was encoded from: "
                    "faces that are nearer to their reference than to it are copied (copy-paste).",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP vision model for CLIP-I where clip_model is 'none': the one that subjects are "
                    "encoded with will do. It measures no CLIP-T.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="The scores as Markdown tables."),
                io.Image.Output(display_name="report", tooltip="The pictures with their scores, on one sheet."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        images: Tensor,
        prompt: str,
        references: io.Autogrow.Type,
        clip_model: str,
        dino_model: str,
        filename_prefix: str,
        face_analysis=None,
        dinov2_model: str = NONE,
        face_recogniser: str = NONE,
        box_model: str = NONE,
        words: str = "",
        unseen_photos: Tensor | None = None,
        clip_vision=None,
    ) -> io.NodeOutput:
        from ..mmdiff_model.evaluation.boxes import class_words, load_boxes
        from ..mmdiff_model.evaluation.encoders import ConnectedVision, load_clip, load_dino, load_dinov2
        from ..mmdiff_model.evaluation.picture import draw_report
        from ..mmdiff_model.evaluation.recogniser import load_recogniser
        from ..mmdiff_model.evaluation.similarity import evaluate

        check_prefix(filename_prefix)
        pictures = photos_from(images)
        subjects = connected_photos(references)
        faces_wanted = face_analysis is not None
        vision_wanted = clip_vision is not None
        check_choice(prompt, bool(subjects), clip_model, dino_model, faces_wanted, dinov2_model, vision_wanted)
        check_judges(faces_wanted, dino_model, face_recogniser, box_model, unseen_photos is not None)
        unseen = None if unseen_photos is None else photos_from(unseen_photos, "unseen_photos")
        looked_for = [] if box_model == NONE else class_words(words, prompt, len(subjects))
        clip, dino, dinov2, recogniser, boxes = (
            None if name == NONE else load(find(FOLDER, name, source), source)
            for load, source, name in (
                (load_clip, "clip_model", clip_model),
                (load_dino, "dino_model", dino_model),
                (load_dinov2, "dinov2_model", dinov2_model),
                (load_recogniser, "face_recogniser", face_recogniser),
                (load_boxes, "box_model", box_model),
            )
        )
        clip = ConnectedVision(clip_vision) if vision_wanted else clip
        faces = None if face_analysis is None else face_matcher(face_analysis, subjects, unseen=unseen)
        second = None if recogniser is None else face_matcher(face_analysis, subjects, recogniser, unseen)
        encoders = sum(model is not None for model in (clip, dino, dinov2))
        steps = comfy.utils.ProgressBar(encoders + len(pictures) * bool(faces))
        report = evaluate(
            pictures,
            prompt,
            list(subjects.values()),
            clip,
            dino,
            faces,
            lambda: steps.update(1),
            dinov2=dinov2,
            second=second,
            boxes=boxes,
            words=looked_for,
        )
        path = report_path(filename_prefix, *images.shape[2:0:-1])
        with writing("filename_prefix", path):
            report.save(path)
        sheet = draw_report(report, pictures, list(subjects.values()))[None]
        return io.NodeOutput(report.table(), sheet, ui=ui.PreviewImage(sheet, cls=cls))

    @classmethod
    def validate_inputs(
        cls,
        references=None,
        prompt=None,
        clip_model=None,
        dino_model=None,
        face_analysis=NOT_CONNECTED,
        filename_prefix=None,
        dinov2_model=NONE,
        clip_vision=NOT_CONNECTED,
    ) -> bool | str:
        faces, vision = (socket is not NOT_CONNECTED for socket in (face_analysis, clip_vision))
        return validation(
            lambda: check_option("clip_model", clip_model, model_names()),
            lambda: check_option("dino_model", dino_model, model_names()),
            lambda: check_option("dinov2_model", dinov2_model, model_names()),
            lambda: check_choice(prompt, bool(references), clip_model, dino_model, faces, dinov2_model, vision),
            lambda: not isinstance(filename_prefix, str) or check_prefix(filename_prefix),
        )


def check_prefix(prefix: str) -> None:
    """Raises ValueError unless the prefix's folders and its name are plain names, but for their %date% parts."""
    for part in re.sub(r"%[\w:. -]{1,40}%", lambda date: "x" * len(date[0]), prefix).replace("\\", "/").split("/"):
        plain_name("filename_prefix", part)


def report_path(prefix: str, width: int, height: int) -> Path:
    """A new .json in the output folder. Raises ValueError where the prefix's folder cannot be made."""
    try:
        output = folder_paths.get_output_directory()
        folder, name, counter, *_ = folder_paths.get_save_image_path(prefix.replace("\\", "/"), output, width, height)
    except OSError as error:
        raise ValueError(f"filename_prefix: '{prefix}' cannot be written ({error}). Choose another.") from error
    return Path(folder) / f"{name}_{counter:05}_.json"


def connected_photos(references: dict[str, Tensor | None]) -> dict[str, list[Tensor]]:
    """The connected references in the order of their sockets, as photos (H, W, 3). Raises ValueError naming one."""
    return {
        name: photos_from(images, f"references.{name}") for name, images in references.items() if images is not None
    }


def face_matcher(
    face_analysis,
    subjects: dict[str, list[Tensor]],
    recogniser: "Recogniser | None" = None,
    unseen: list[Tensor] | None = None,
) -> "FaceMatcher":
    """Finds the subjects' own faces. Raises ValueError naming the reference and the photo without one."""
    from ..mmdiff_model.evaluation.matching import FaceMatcher, reference_faces, unseen_faces

    faces = [
        reference_faces(face_analysis, photos, f"references.{name}", recogniser) for name, photos in subjects.items()
    ]
    others = [] if unseen is None else unseen_faces(face_analysis, unseen, faces, "unseen_photos", recogniser)
    return FaceMatcher(face_analysis, faces, recogniser, others)


def check_choice(
    prompt: str | None,
    references: bool,
    clip_model: str | None,
    dino_model: str | None,
    faces: bool,
    dinov2_model: str | None = NONE,
    vision: bool = False,
) -> None:
    """Raises ValueError where there is nothing to measure, or a chosen score lacks its prompt or photos; None is a
    linked input, not known yet."""
    from ..mmdiff_model.evaluation.similarity import plain_prompt

    if clip_model == dino_model == dinov2_model == NONE and not (faces or vision):
        raise ValueError(
            "clip_model: there is nothing to measure. Choose a clip_model or a dino_model from "
            "models/mmdiff_evaluation, or connect face_analysis or clip_vision."
        )
    if vision and clip_model not in (NONE, None):
        raise ValueError("clip_vision: clip_model measures CLIP-I already. Disconnect it, or set clip_model to 'none'.")
    if clip_model not in (NONE, None) and isinstance(prompt, str) and not plain_prompt(prompt):
        raise ValueError("prompt: it is empty, and CLIP-T compares the pictures with it. Write the pictures' prompt.")
    needs = {
        "dino_model": dino_model not in (NONE, None),
        "dinov2_model": dinov2_model not in (NONE, None),
        "face_analysis": faces,
        "clip_vision": vision,
    }
    if not references and any(needs.values()):
        needing = next(name for name, chosen in needs.items() if chosen)
        raise ValueError(
            f"references: none is connected, and {needing} compares the pictures with them. Connect photos of each "
            f"subject, or leave out {needing}."
        )


def check_judges(faces: bool, dino_model: str, face_recogniser: str, box_model: str, unseen: bool) -> None:
    """Raises ValueError where a second judge has nothing to judge."""
    if not faces and (face_recogniser != NONE or unseen):
        needing = "face_recogniser" if face_recogniser != NONE else "unseen_photos"
        raise ValueError(
            f"{needing}: it reads the faces that InsightFace finds. Connect face_analysis, or leave out {needing}."
        )
    if box_model != NONE and dino_model == NONE and not faces:
        raise ValueError(
            "box_model: it finds what dino_model or face_analysis then compares. Choose a dino_model, or connect "
            "face_analysis."
        )
