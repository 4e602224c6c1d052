"""Region masks grown, shrunk and feathered, in pixels of the mask."""

import torch
from torch import Tensor

CROSS = ((0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))


def expand_region(region: Tensor, pixels: int) -> Tensor:
    """Mask (h, w) -> (h, w) whose border moved outwards by that many pixels, inwards below 0.

    Pixel by pixel as ComfyUI's Grow Mask with tapered corners; it ends early where nothing changes any more.
    """
    from kornia.morphology import dilation, erosion

    kernel = torch.tensor(CROSS, device=region.device)
    step = dilation if pixels > 0 else erosion
    for _ in range(abs(pixels)):
        before, region = region, step(region[None, None], kernel, engine="unfold")[0, 0]
        if torch.equal(region, before):
            break
    return region


def feather_region(region: Tensor, pixels: int) -> Tensor:
    """Mask (h, w) -> (h, w) whose borders fade over that many pixels to each side; at the picture's edge nothing fades.

    The mean of a window of 2 pixels + 1: what two regions that share a border lose and gain there adds up.
    """
    from kornia.filters import box_blur

    window = 2 * pixels + 1
    return box_blur(region[None, None], (window, window), "replicate", separable=True)[0, 0].clamp(0, 1)
