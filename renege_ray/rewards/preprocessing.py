"""From images of any size to what a vision tower takes, in float32 and differentiable throughout.

B, H, W: images (B, 3, H, W) in [0, 1]. The packages that the rewards come from do this on PIL images; bicubic
interpolation with antialiasing is the same filter, but here without the rounding to 8 bits, which has no gradient.
"""

from torch import Tensor
from torch.nn import functional as F

# Of OpenAI's CLIP; all models here were trained with them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, width), bicubic with antialiasing. It may leave [0, 1] a little at edges."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)


def letterbox(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the longest side becomes `size`, and black fills the rest."""
    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    images = resize(images, height, width)
    missing_height, missing_width = size - height, size - width
    left, top = missing_width // 2, missing_height // 2
    return F.pad(images, (left, missing_width - left, top, missing_height - top))


def centre_crop(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the shortest side becomes `size`, and the middle is kept."""
    shortest = min(images.shape[-2:])
    height, width = (size * side // shortest for side in images.shape[-2:])
    return centre(resize(images, height, width), size)


def centre(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), the middle."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def normalise(images: Tensor, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same minus a mean, divided by a standard deviation (CLIP's)."""
    shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images - shift) / scale
