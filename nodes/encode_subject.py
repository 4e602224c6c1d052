"""Reference photos -> a subject."""

import torch
from comfy_api.latest import io

from ..mmdiff_model.adapter import PORTRAIT
from ..mmdiff_model.faces import FaceChoice, detect_faces
from ..mmdiff_model.subject import encode_subject
from ..mmdiff_model.vision import segment
from .images import masks_from, photos_from
from .sockets import MMDiffSubject, mmdiff_input

FIRST, MEAN = "first photo (as released)", "mean of all photos"
