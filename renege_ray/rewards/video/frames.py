"""Videos (B, 3, F, height, width), where everything else has images (B, 3, height, width).

What judges images judges a video by each of its frames, and its judgement is the mean over them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T", Tensor, dict[str, Tensor])


def is_video(images: Tensor) -> bool:
    """Whether there is a dimension of frames."""
    return images.ndim == 5


def flatten_frames(videos: Tensor) -> Tensor:
    """(B, 3, F, height, width) -> (B F, 3, height, width), the frames of a video one after the other."""
    return videos.transpose(1, 2).flatten(0, 1)


def over_frames(judge: Callable[[Tensor, Sequence[str]], T], images: Tensor, prompts: Sequence[str]) -> T:
    """What a judge of images says, (B,) or several by name, of images or, as the mean over the frames, of videos.

    NaN, which stands for a measurement that does not apply, stays NaN.
    """
    if not is_video(images):
        return judge(images, prompts)
    count, frames = len(images), images.shape[2]
    judged = judge(flatten_frames(images), [prompt for prompt in prompts for _ in range(frames)])
    if isinstance(judged, dict):
        return {name: values.view(count, frames).mean(dim=1) for name, values in judged.items()}
    return judged.view(count, frames).mean(dim=1)


def frames_of(image: Tensor) -> tuple[Tensor, ...]:
    """The frames (3, height, width) of one video (3, F, height, width); of an image (3, height, width), itself."""
    return image.unbind(dim=1) if image.ndim == 4 else (image,)


def middle_frame(images: Tensor) -> Tensor:
    """(B, 3, height, width): images as they are, of a video the frame in its middle."""
    return images[:, :, images.shape[2] // 2] if is_video(images) else images
