"""Preprocessing beside torchvision's and PIL's."""

import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from renege_ray.rewards.vision import MEAN, STD, centre_crop, letterbox, normalise
from tests.rewards.photographs import photographs

# As OpenAI's CLIP, ImageReward and the aesthetic predictor prepare images, but for the type of the image.
STEPS = [transforms.Resize(224, InterpolationMode.BICUBIC, antialias=True), transforms.CenterCrop(224)]


@pytest.mark.parametrize("photograph", photographs())
def test_centre_crop_is_torchvisions(photograph: str) -> None:
    image = photographs()[photograph]
    for turned in (image, image.transpose(2, 3), image[..., :101, :99], image[..., :20, :333]):
        expected = transforms.Compose([*STEPS, transforms.Normalize(MEAN, STD)])(turned[0])
        torch.testing.assert_close(normalise(centre_crop(turned, 224))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("photograph", photographs())
def test_centre_crop_is_nearly_pils(photograph: str) -> None:
    """PIL rounds to 8 bits and cuts off what leaves [0, 1], and that between rows and columns too."""
    picture = Image.fromarray(getattr(data, photograph)())
    expected = transforms.Compose([*STEPS, transforms.ToTensor()])(picture)
    found = centre_crop(photographs()[photograph], 224)[0]
    assert (found.clamp(0, 1) - expected).abs().max() < 6 / 255
    assert (found - expected).abs().mean() < 0.5 / 255


def test_letterbox_fills_with_black_around_the_middle() -> None:
    image = torch.full((1, 3, 30, 60), 0.7)
    boxed = letterbox(image, 225)
    rows = torch.where(boxed[0, 0, :, 100] > 0.35)[0]
    assert boxed.shape == (1, 3, 225, 225)
    assert (rows.min(), rows.max()) == (56, 167)  # 112 rows; of the 113 others one more is below
    assert boxed[0, 0, :56].abs().max() == boxed[0, 0, 168:].abs().max() == 0
    assert torch.allclose(boxed[0, :, 56:168], torch.tensor(0.7), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_shapes_keep_a_pixel(size: tuple[int, int]) -> None:
    boxed = letterbox(torch.ones(1, 3, *size), 224)
    assert boxed.shape == (1, 3, 224, 224) and boxed.sum() > 0


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = torch.rand(1, 3, 224, 224)
    assert torch.equal(letterbox(image, 224), image) and torch.equal(centre_crop(image, 224), image)
    wide = torch.rand(1, 3, 100, 224)
    assert torch.equal(letterbox(wide, 224)[:, :, 62:162], wide)


def test_the_gradient_is_right() -> None:
    def both(images: Tensor) -> Tensor:
        return normalise(torch.cat([letterbox(images, 6), centre_crop(images, 6)]))

    images = torch.rand(1, 3, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(both, images.requires_grad_())


def test_a_reward_that_was_first_used_in_inference_mode_is_differentiable_later() -> None:
    mean, std = (0.1, 0.2, 0.35), (0.4, 0.5, 0.65)  # of nobody else here
    with torch.inference_mode():
        normalise(torch.zeros(1, 3, 2, 2), mean, std)
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalise(images, mean, std).sum().backward()
    assert images.grad is not None
