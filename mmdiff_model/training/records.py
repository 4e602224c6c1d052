"""placeholder of the lead until the helper writes this file"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    word: str
    start: int
    end: int
    mask: np.ndarray
    reference: np.ndarray | None


@dataclass(frozen=True)
class Record:
    name: str
    picture: np.ndarray
    caption: str
    segments: tuple


class BadRecord(ValueError):
    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Records: ...
