"""A model by its configuration: checked, identified by its text encoder, loaded.

diffusers takes seconds to import, so it is imported only where a model's own files are read.
"""

from types import SimpleNamespace

import torch

from renege_ray.config.run import ModelConfig, SamplingConfig
from renege_ray.errors import UserError
from renege_ray.models.base import TextToImage
from renege_ray.models.guidance import check_scale, options_of
from renege_ray.models.hardware import default_device, fastest_dtype_on
from renege_ray.models.text_encoder import TextEncoderIdentity, identify, read_denoiser
from renege_ray.models.toy import EMBEDDED_MODELS, TRAINING_STEPS


def check_model(config: ModelConfig, sampling: SamplingConfig, *, gradients: bool = True) -> None:
    """Check that a model is there and can be sampled so, without loading it.

    The Hub's files are downloaded here. An embedded model is the package's own: only what is added to it is looked at.

    Args:
        config: the model.
        sampling: how it is to be sampled.
        gradients: whether gradients are to be taken.

    Raises:
        UserError: it cannot be found, makes no use of a negative, has a file that is missing or damaged, or a noise
            schedule that has no such steps; a scale at which its negative has no effect; or its ControlNet has no
            images to look at.
    """
    if config.id not in EMBEDDED_MODELS or config.variant or config.control or config.negative_tokens:
        from renege_ray.models.loading.checks import check_files

        check_files(config, sampling, gradients=gradients)
        return
    check_scale(sampling.guidance_scale)
    options_of(sampling, {}, f"model {config.id!r}")
    if sampling.num_inference_steps > TRAINING_STEPS:
        raise UserError(
            f"sampling.num_inference_steps: {sampling.num_inference_steps} is more than the {TRAINING_STEPS} steps of "
            "the model's noise schedule; 20 are enough"
        )


def identify_text_encoder(config: ModelConfig) -> TextEncoderIdentity:
    """Read the tokenizers' and the text encoders' files of a model, and no others unless a LoRA is to be added.

    Raises:
        UserError: the model cannot be found, or its text encoders cannot be read.
    """
    from renege_ray.models.families.registry import check_family
    from renege_ray.models.loading.hub import find_folder, load_pipeline

    folder = find_folder(config)
    family = check_family(folder, config.id)
    pipeline, _ = load_pipeline(config, text_only=config.lora is None, dtype=torch.float32)
    parts = SimpleNamespace(**(pipeline.components | {family.DENOISER: read_denoiser(folder, family.DENOISER)}))
    return identify(pipeline, family.chosen_layout(parts, config.negative_tokens))


def load_model(config: ModelConfig, device: torch.device | str | None = None) -> TextToImage:
    """Load the model that a configuration names.

    Args:
        config: its `model` section. Where `compile` is still "auto" nothing is compiled; see
            `models.networks.compiled.decide`.
        device: where to; if none is given, the first CUDA device, Apple's GPU where it works, or the CPU.

    Raises:
        UserError: the model cannot be found or loaded, is of no supported family, or makes no use of a negative.
    """
    from renege_ray.models.families.registry import FAMILIES
    from renege_ray.models.loading.hub import load_pipeline

    device = torch.device(device or default_device())
    compiles = config.compile is True
    if compiles and device.type == "cuda":
        # Sizes are fixed then, so each convolution is tried once; those of ragged batches would be again and again.
        torch.backends.cudnn.benchmark = True
    dtype = choose_dtype(config.dtype, device)
    pipeline, name = load_pipeline(config, dtype=dtype)
    family = FAMILIES[type(pipeline).__name__]
    return family(pipeline, name, dtype=dtype, device=device, compile=compiles, **family.options(config))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating type that a name stands for; "auto" is that of `hardware.fastest_dtype`."""
    if name == "auto":
        return fastest_dtype_on(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
