"""The pack's model folders: models/mmdiff for checkpoints, models/mmdiff_subjects for subject files."""

from pathlib import Path

import folder_paths


def register(folder: str, *extensions: str) -> str:
    """Adds models/<folder> beside whatever extra_model_paths.yaml gives for it; returns the folder's name."""
    folder_paths.add_model_folder_path(folder, str(Path(folder_paths.models_dir) / folder))
    folder_paths.folder_names_and_paths[folder][1].update(extensions)
    return folder


def find(folder: str, name: str, source: str) -> Path:
    """Full path of a file or folder in a registered folder. Raises FileNotFoundError naming the input `source`."""
    roots = folder_paths.get_folder_paths(folder)
    for path in (Path(root) / name for root in roots):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{source}: '{name}' is no longer in {', '.join(roots)}. Put it back or choose another, then refresh the node "
        "definitions (R)."
    )


def new_file(folder: str, filename: str, overwrite: bool = False) -> Path:
    """Path of a .safetensors to write in a registered folder. Raises ValueError on a bad name, FileExistsError."""
    root = Path(folder_paths.get_folder_paths(folder)[0])
    path = root / f"{filename.strip().removesuffix('.safetensors')}.safetensors"
    if path.stem.startswith(".") or path.name == ".safetensors" or path.parent.resolve() != root.resolve():
        raise ValueError(f"filename: '{filename}' is not a plain file name. Use letters, digits, '-' and '_'.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"filename: '{path.name}' is already in {root}. Choose another name, or delete or overwrite that file."
        )
    return path
