"""The state of a training on disk: one file that is replaced as a whole, so that a kill leaves the old or the new."""

import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from ..files import write_whole

# what digests stand for, as people call it
DIGESTED = {
    "model": "model",
    "clip": "CLIP",
    "vae": "VAE",
    "clip_vision": "CLIP vision model",
    "face_analysis": "face analysis",
    "data": "data set",
    "maps": "set of maps",
}


class StateError(ValueError):
    """A state that the training cannot go on from: another training's, another version's, or damaged."""


class State:
    """`path` holds the state of a training that `identity` describes: what must be the same for a resumed run to end
    as an uninterrupted one, by the configuration's keys and those of DIGESTED."""

    def __init__(self, path: Path, identity: dict[str, str]):
        self.path, self.identity = path, identity

    def load(self, device: torch.device, restore: Callable[[dict], None]) -> None:
        """Gives `restore` what was saved, if anything was. Raises StateError.

        A GPU's training reads the tensors from the disk as they are copied, so that they are never in memory twice.
        """
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", mmap=device.type != "cpu", weights_only=True)
            identity = saved["identity"]
            self.check(identity)
            restore(saved)
        except (StateError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, LookupError, TypeError) as error:
            raise StateError(
                f"{self.path}: it is damaged, or of another version of this pack ({error}). Choose another output, or "
                "delete it to train from the beginning."
            ) from error

    def check(self, identity: dict[str, str]) -> None:
        """Raises StateError. A state of an older version has no `maps`."""
        now = self.identity
        identity = {"maps": now.get("maps"), **identity}
        changed = [key for key in now if identity.get(key) != now[key]]
        if "data" in changed:  # which has other maps, then
            changed = [key for key in changed if key != "maps"]
        others = [
            f"another {DIGESTED[key]} than this one ({identity.get(key)}, now {now[key]})"
            for key in changed
            if key in DIGESTED
        ]
        settings = [f"{key} was {identity.get(key)}, now {now[key]}" for key in changed if key not in DIGESTED]
        if settings:
            others.append(f"other settings ({'; '.join(settings)})")
        if others:
            raise StateError(
                f"{self.path}: the training in this folder was started with {' and '.join(others)}. Put back what was "
                "there to go on with it, or choose another output."
            )

    def save(self, values: dict) -> None:
        """Replaces the file. Raises OSError with what to do; the file that was there stays."""
        try:
            write_whole(self.path, lambda partial: torch.save({**values, "identity": self.identity}, partial))
        except (OSError, RuntimeError) as error:  # torch.save tells of a full disk with a RuntimeError
            kept = "the file of the last save is still there" if self.path.is_file() else "nothing has been saved yet"
            raise OSError(
                f"{self.path}: could not be written ({error}); {kept}. Free some disk space or fix the folder, then "
                "run the same command again."
            ) from error
