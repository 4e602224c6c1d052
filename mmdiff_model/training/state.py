"""The state of a training on disk: one file that is replaced as a whole, so that a kill leaves the old or the new."""

from pathlib import Path

import torch

from ..files import write_whole


class StateError(ValueError):
    """A state that is damaged, or does not belong to the training that wants to resume it."""


class State:
    """`path` holds the state of a training that `identity` describes: what must be the same for a resumed run to end
    as an uninterrupted one, by the configuration's keys."""

    def __init__(self, path: Path, identity: dict[str, str]):
        self.path, self.identity = path, identity

    def load(self, device: torch.device) -> dict | None:
        """What was saved, or None. Raises StateError where it is damaged or another training's."""
        if not self.path.is_file():
            return None
        try:
            saved = torch.load(self.path, map_location=device, weights_only=True)
            identity = saved.pop("identity")
        except Exception as error:  # a damaged file makes PyTorch raise almost anything
            raise StateError(
                f"{self.path}: this state of a training is damaged ({type(error).__name__}). Put a copy of it back, or "
                "choose another output to start anew."
            ) from error
        changed = [key for key in self.identity if identity.get(key) != self.identity[key]]
        if changed:
            was = "; ".join(f"{key} was {identity.get(key)}, now {self.identity[key]}" for key in changed)
            raise StateError(
                f"{self.path}: the training in this folder was started with other settings ({was}). Put them back to "
                "go on with it, or choose another output."
            )
        return saved

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
