"""Scores a folder of pictures: python tools/evaluate.py --pictures FOLDER --references FOLDER --clip FOLDER ...

References are REFERENCES/<subject>/*.jpg as in DreamBench, pictures PICTURES/<subject>/*.png or, of several subjects,
PICTURES/<subject>+<subject>/*.png, with the prompt of NAME.png in NAME.txt. With --server and --workflow the pictures
are painted first. After a kill the same command goes on. docs/evaluation.md says what is measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdiff_model.host import use_comfyui  # noqa: E402

RESULTS_FILE, LOCK_FILE = "results.jsonl", ".evaluate.lock"
FAILED, STOPPED = 1, 3
UNREAD = {".h5", ".msgpack", ".ot", ".md"}  # weights for other programs, and texts


def main() -> int:
    """The exit status: 0, 1 for an error, 3 where Ctrl-C has stopped it."""
    options = arguments().parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names may be no text
    logging.basicConfig(format="%(message)s")
    try:
        use_comfyui()
        run(options)
    except KeyboardInterrupt:
        say("\nstopped: the same command goes on.")
        return STOPPED
    except (ValueError, ImportError) as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return FAILED
    except BlockingIOError:
        place = options.output or options.pictures
        problem = f"another evaluation is at work on {place}. Wait until it ends, or choose another --output."
        print(f"\nerror: output: {problem}", file=sys.stderr, flush=True)
        return FAILED
    except (OSError, RuntimeError) as error:
        print(f"\nerror: {error}\nWhat was done is kept: the same command goes on.", file=sys.stderr, flush=True)
        return FAILED
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pictures", type=Path, required=True, help="the generated pictures")
    add("--references", type=Path, required=True, help="the photos of the subjects")
    add("--unseen", type=Path, help="a further photo of each subject, for copy-paste, in folders as the references")
    add("--prompt", default="", help="the prompt of the pictures that have no .txt")
    add("--words", nargs="*", default=[], metavar="SUBJECT=WORD", help="class words; DreamBench's file has its own")
    add("--output", type=Path, help="where the figures go; 'evaluation' in the pictures' folder")
    models = parser.add_argument_group(
        "models, each a folder of files from Hugging Face; what is left out is not scored"
    )
    models.add_argument("--clip", type=Path, help="CLIP-T and CLIP-I: openai/clip-vit-large-patch14")
    models.add_argument("--dino", type=Path, help="DINO: facebook/dino-vits16")
    models.add_argument("--dinov2", type=Path, help="DINOv2: facebook/dinov2-base")
    models.add_argument("--faces", type=Path, help="faces: an InsightFace pack, .../insightface/models/buffalo_l")
    models.add_argument(
        "--recogniser", type=Path, help="a second face recogniser, one .onnx file or a transformers model"
    )
    models.add_argument("--boxes", type=Path, help="boxes by word: IDEA-Research/grounding-dino-tiny")
    painting = parser.add_argument_group("painting first, by a running ComfyUI")
    painting.add_argument("--server", help="its address, such as http://127.0.0.1:8188")
    painting.add_argument("--workflow", type=Path, help="saved or exported, with one MM-Diff text and one Save Image")
    painting.add_argument("--prompts", type=Path, help="one a line, {} for each class word; else DreamBench's file")
    painting.add_argument("--subjects", nargs="*", metavar="NAME", help="subjects or NAME+NAME; else each one alone")
    painting.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    return parser


def run(options: argparse.Namespace) -> None:
    from mmdiff_model.evaluation.cases import read_classes, read_pictures, read_references
    from mmdiff_model.files import lock

    references = read_references(options.references)
    classes = read_classes(options.references)
    words = class_words(options.words, references, classes)
    chosen = [name for name in ("clip", "dino", "dinov2", "faces") if getattr(options, name)]
    if not (chosen or options.server):
        raise ValueError("nothing to measure: give --clip, --dino, --dinov2 or --faces, or a --server that paints.")
    if options.output and options.output.exists() and not options.output.is_dir():
        raise ValueError(f"output: {options.output} is a file, a folder is needed.")
    files = [] if options.server else read_pictures(options.pictures, list(references), options.prompt)
    output = options.output or options.pictures / "evaluation"
    give_back = lock(output / LOCK_FILE)
    judges, settings, names = load(options, references, words) if chosen else (None, {}, {})
    if options.server:
        painted = paint(options, references, words, classes)
        if judges is None:
            return
        found = read_pictures(options.pictures, list(references), options.prompt)
        files = [file for file in found if file.name in painted]
        if others := len(found) - len(files):
            say(f"{others} pictures of other prompts, seeds or subjects lie beside these and are not measured.")
    if options.boxes:
        without_word({subject for file in files for subject in file.subjects}, words, "--boxes")
    measure(options, output, files, judges, settings, names, classes is not None)
    give_back()


def unseen_photos(folder: Path | None, references: dict[str, list[Path]]) -> dict[str, Path]:
    """The first photo of each subject there. Raises ValueError on a subject that the references have not."""
    from mmdiff_model.evaluation.cases import read_references

    if folder is None:
        return {}
    found = {name: photos[0] for name, photos in read_references(folder, "unseen").items()}
    if len(found) == len(references) == 1:
        return dict(zip(references, found.values(), strict=True))
    if unknown := sorted(found.keys() - references.keys()):
        raise ValueError(f"unseen: the references have no '{unknown[0]}', only {', '.join(references)}.")
    if lacking := sorted(references.keys() - found.keys()):
        say(f"--unseen: there is none of {', '.join(lacking)}, whose pictures have no copy-paste.")
    return found


def class_words(given: list[str], references: dict[str, list[Path]], classes: Any) -> dict[str, str]:
    """Every subject's class word that is known. Raises ValueError on a subject that is not."""
    words = dict(classes.words) if classes else {}
    for text in given:
        subject, _, word = text.partition("=")
        if subject not in references or not word.strip():
            raise ValueError(f"words: '{text}' should be SUBJECT=WORD, with a subject of {', '.join(references)}.")
        words[subject] = word.strip()
    return words


def without_word(subjects: set[str], words: dict[str, str], needing: str) -> None:
    if lacking := sorted(subjects - words.keys()):
        raise ValueError(f"words: {needing} needs the class word of {lacking[0]}. Add --words {lacking[0]}=WORD.")


def paint(
    options: argparse.Namespace, references: dict[str, list[Path]], words: dict[str, str], classes: Any
) -> set[str]:
    """Paints what the plan lacks -> the names of all its pictures."""
    from comfy_client import Client
    from mmdiff_model.evaluation.cases import BETWEEN, read_text
    from painting import Workflow, paint_all, plan

    if options.workflow is None:
        raise ValueError("workflow: --server paints with a workflow. Give its file with --workflow.")
    chosen = options.subjects or references
    subjects = [(name,) if name in references else tuple(name.split(BETWEEN)) for name in chosen]
    named = {subject for group in subjects for subject in group}
    if unknown := sorted(named - references.keys()):
        raise ValueError(f"subjects: the references have no '{unknown[0]}', only {', '.join(references)}.")
    without_word(named, words, "a prompt")
    if options.prompts:
        lines = read_text(options.prompts).splitlines()
        given = [line.strip() for line in lines if line.strip()]
        if not given:
            raise ValueError(f"prompts: {options.prompts} is empty.")
    elif classes is None:
        raise ValueError("prompts: give a file with --prompts, one prompt a line, {} for each class word.")
    client = Client(options.server)
    works = list(
        plan(subjects, words, lambda group: given if options.prompts else classes.prompts(group[0]), options.seeds)
    )
    paint_all(options.pictures, works, Workflow.read(options.workflow, client), references, client, say)
    return {work.name for work in works}


def load(
    options: argparse.Namespace, references: dict[str, list[Path]], words: dict[str, str]
) -> tuple[Any, dict, dict[str, str]]:
    """The judges, the settings that results must share, and the models' names. Raises ValueError, ImportError."""
    from mmdiff_model.evaluation.boxes import load_boxes
    from mmdiff_model.evaluation.encoders import load_clip, load_dino, load_dinov2
    from mmdiff_model.evaluation.figures import Models
    from mmdiff_model.evaluation.folder import Judges, digest
    from mmdiff_model.evaluation.recogniser import load_recogniser
    from mmdiff_model.faces import load_face_analysis

    if (options.recogniser or options.unseen) and not options.faces:
        needing = "recogniser" if options.recogniser else "unseen"
        raise ValueError(f"{needing}: it reads the faces that InsightFace finds. Add --faces.")
    if options.boxes and not (options.dino or options.faces):
        raise ValueError("boxes: they are for what --dino or --faces then compares. Add one of these.")
    loaders = {
        "clip": load_clip,
        "dino": load_dino,
        "dinov2": load_dinov2,
        "boxes": load_boxes,
        "recogniser": load_recogniser,
    }
    folders = {role: getattr(options, role) for role in (*loaders, "faces") if getattr(options, role)}
    for role, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"{role}: the folder {folder} does not exist.")
    found = {role: load(folders[role], role) for role, load in loaders.items() if role in folders}
    models = Models(*(found.get(role) for role in ("clip", "dino", "dinov2", "boxes")))
    analysis = None
    if "faces" in folders:
        pack = options.faces.resolve()
        analysis = load_face_analysis(pack.parent.parent, pack.name) if pack.parent.name == "models" else None
        if analysis is None:
            raise ValueError(f"faces: {pack} should be a pack in InsightFace's layout, .../models/{pack.name}.")
    judges = Judges(
        models,
        references,
        analysis,
        found.get("recogniser"),
        unseen_photos(options.unseen, references),
        words if options.boxes else {},
    )
    names = {role: folder.name for role, folder in folders.items()}
    settings = {role: [folder.name, digest(files_of(folder))] for role, folder in folders.items()}
    return judges, settings, names


def files_of(model: Path) -> list[Path]:
    """What a model's folder is known by: its weights, once where they lie there in two forms, and its settings."""
    unread = UNREAD | ({".bin"} if any(model.glob("model*.safetensors")) else set())
    files = (path for path in sorted(model.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.suffix not in unread]


def measure(
    options: argparse.Namespace,
    output: Path,
    files: list,
    judges: Any,
    settings: dict,
    names: dict[str, str],
    dreambench: bool,
) -> None:
    from mmdiff_model.evaluation.folder import measure_folder
    from mmdiff_model.evaluation.results import Results
    from mmdiff_model.evaluation.summary import between_photos, save, tables

    done = measure_folder(files, judges, Results(output / RESULTS_FILE, settings), say)
    for problem in done.bad:
        say(f"passed over: {problem}")
    if not done.lines:
        raise ValueError("pictures: none of them could be read.")
    if unprompted := sum(not line.prompt for line in done.lines) * bool(options.clip):
        say(
            f"CLIP-T leaves out {unprompted} pictures without a prompt: put NAME.txt beside NAME.png, or give --prompt."
        )
    used = dict.fromkeys(subject for line in done.lines for subject in line.subjects)
    if dreambench and judges.models.dino and not is_vit_s16(judges.models.dino):
        say(f"--dino: the published DINO figures are ViT-S/16's, and {judges.models.dino.name} is another model.")
    references = [between_photos(judges.known(subject).photos) for subject in used] if dreambench else []
    text = tables(done.lines, references, dreambench)
    save(output, done.lines, text, names)
    say(f"\n{text}\nwritten to {output}")


def is_vit_s16(dino: Any) -> bool:
    config = dino.loaded.model.config
    return (config.model_type, config.hidden_size, config.patch_size) == ("vit", 384, 16)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
