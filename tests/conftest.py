"""Fixtures that tests of several parts share."""

from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.tiny import build_tiny_pipeline


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tensors this small are faster on one thread, and results do not hang on the machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_pipeline() -> Callable[..., StableDiffusionPipeline]:
    """The builder of tiny pipelines."""
    return build_tiny_pipeline
