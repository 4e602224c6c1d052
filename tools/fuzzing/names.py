"""Names and folders that nodes take."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import folder_paths
from hypothesis import strategies as st

from .outcome import RIGHT, Wrong, make_subject
from .values import ODD, any_text

PARTS = [
    *(
        "..",
        ".",
        "/",
        "\\",
        "~",
        "~nosuchuser",
        "\0",
        "\n",
        ":",
        "%",
        "%date%",
        "%year%",
        "con",
        "NUL",
        "COM1",
        "lpt\xb9",
    ),
    *(
        "anna",
        "Anna 2",
        "a-b_c",
        ".safetensors",
        "\u5b89\u5a1c",
        "\u0430",
        "\u0e19\u0e49\u0e33",
        "\U0001f600",
        *ODD,
    ),
    *(" ", "x" * 150, "\u5b89" * 70, "|", "<|subj|>", "C:", "$", "*", "\u202e", "\xa0"),
]
texts = st.one_of(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), any_text(60))


class Names:
    """Every name and folder that a node takes: made in its folder, or refused. Cases are (node's input, name)."""

    def __init__(self, folder: Path):
        from mm_diff_pack.nodes import checkpoints, evaluate, folders, subjects, train

        self.root = folder / "names"
        for name in ("mmdiff", "mmdiff_subjects", "output", "input"):
            (self.root / name).mkdir(parents=True)
        for name in ("mmdiff", "mmdiff_subjects"):
            folder_paths.folder_names_and_paths[name] = ([str(self.root / name)], {".safetensors", ".bin"})
        folder_paths.set_output_directory(str(self.root / "output"))
        folder_paths.set_input_directory(str(self.root / "input"))
        (self.root / "secret.safetensors").write_text("secret")
        (self.root / "mmdiff_subjects" / f"{ODD[1]}.safetensors").write_text("no UTF-8")
        self.writes = {
            "subject": lambda name: folders.new_file(subjects.FOLDER, name),
            "checkpoint": lambda name: folders.new_file(checkpoints.FOLDER, name),
            "training": lambda name: train.output_folder(name),
            "evaluation": lambda name: (evaluate.check_prefix(name), evaluate.report_path(name, 64, 64))[1],
        }
        self.reads = {
            "load subject": lambda name: folders.find(subjects.FOLDER, name, "file"),
            "load checkpoint": lambda name: folders.find(checkpoints.FOLDER, name, "checkpoint"),
        }
        self.node = subjects.MMDiffSubjectRegion.execute
        self.subject = make_subject(4, 2, 8)
        self.others = {"data": train.data_path, "region": self.region}
        self.cases = st.tuples(st.sampled_from([*self.writes, *self.reads, *self.others]), texts)

    def region(self, name: str) -> None:
        """A subject's name, in the node and in its file."""
        from mm_diff_pack.mmdiff_model.subject_file import load_subject, save_subject

        named = self.node(self.subject, 1.0, name, 0.0, 1.0).args[0]
        save_subject(named, self.root / "named.safetensors")
        if load_subject(self.root / "named.safetensors").name != unicodedata.normalize("NFC", name.strip()):
            raise Wrong("a file with another name of its subject")

    def __call__(self, case) -> str:
        kind, name = case
        if kind in self.others:
            self.others[kind](name)
            return RIGHT
        path = (self.writes | self.reads)[kind](name)
        if ".." in path.parts or not path.resolve().is_relative_to(self.root / path.relative_to(self.root).parts[0]):
            raise Wrong(f"leads to {path}")
        if kind in self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.0123456789ab.partial")
            for made in (path, partial):
                made.write_text("")
                made.unlink()
        return RIGHT
