"""What can be known of a model before its weights are read: that they are there, and that it can be sampled."""

from pathlib import Path

from safetensors import safe_open

from renege_ray.config.run import ModelConfig, SamplingConfig
from renege_ray.errors import UserError
from renege_ray.models.families.registry import check_family
from renege_ray.models.folder import INDEX, read_json, sole_variant, variants_of
from renege_ray.models.frozen_pipeline import read_scheduler
from renege_ray.models.guidance import check_gradient_steps
from renege_ray.models.loading.controlnet import check_control
from renege_ray.models.loading.hub import find_folder
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.models.text_encoder import ENCODERS

# As safetensors names them; whole numbers are buffers (positions).
_WHOLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}


def check_files(config: ModelConfig, sampling: SamplingConfig, *, gradients: bool) -> None:
    """Check the files of a model in a folder or on the Hub (from where they are downloaded here), reading no weights.

    Raises:
        UserError: it cannot be found, makes no use of a negative, has a text encoder of another kind, a file that is
            missing or damaged, or a noise schedule that has no such steps; a scale, or steps to take gradients at, at
            which its negative has no effect; or its ControlNet has no images to look at.
    """
    folder = find_folder(config)
    check_control(config, folder)
    _check_weights(folder, config)
    _check_text_encoder(folder, config.id)
    _check_size(folder, config)
    _check_sampling(folder, config, sampling, gradients)


def _check_text_encoder(folder: Path, model: str) -> None:
    """No first text encoder but SD3's ends in a projection: one vector a prompt, where one a token is wanted."""
    if check_family(folder, model).POOLS_FIRST:
        return
    named = read_json(folder / INDEX).get("text_encoder") or [None, None]
    if named[1] == "CLIPTextModelWithProjection":
        raise UserError(
            f"model {model!r}: its text_encoder is a {named[1]}, which gives one vector a prompt instead of one "
            "a token (its own pipeline cannot use it either); save it as a CLIPTextModel"
        )


def _check_size(folder: Path, config: ModelConfig) -> None:
    """What images are made at is in the denoiser's configuration, unless it is given."""
    family = check_family(folder, config.id)
    file = folder / family.DENOISER / "config.json"
    if config.size is None and family.SIZE is None and read_json(file).get("sample_size") is None:
        raise UserError(
            f"model.size: {file} does not say at what size the model was trained (its sample_size is null or missing); "
            "give the height and width of images, such as --model.size 512,512"
        )


def _check_weights(folder: Path, config: ModelConfig) -> None:
    """All networks have safetensors files of the wanted variant, or of none, with whole headers."""
    index = read_json(folder / INDEX)
    encoders = [name for name in ENCODERS if (index.get(name) or [None])[0] is not None]
    variants: set[str] = set()
    for part in (check_family(folder, config.id).DENOISER, "vae", *encoders):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise UserError(
                f"model {config.id!r}: {folder / part} has no .safetensors file, and no other kind is read; "
                "export or download the model again"
            )
        found = variants_of(folder / part)
        if config.variant is None and "" not in found and sole_variant(folder) is None:
            raise UserError(
                f"model.variant: null, but {folder / part} has its weights as variant {' or '.join(sorted(found))} "
                f"only; give --model.variant {min(found)}"
            )
        variants |= found
        for file in files:
            with (
                user_errors(f"model file {file}", "export or download the model again"),
                safe_open(file, "pt") as opened,
            ):
                kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (no mapping)
            if narrow := kinds - _WHOLE:
                raise UserError(
                    f"model file {file} holds weights of {', '.join(sorted(narrow))}, rounded too far for exact "
                    "gradients and embeddings; give the model in bfloat16, float16 or float32"
                )
    if config.variant is not None and config.variant not in variants:
        others = ", ".join(sorted(variants - {""})) or "none"
        raise UserError(f"model.variant: {config.variant!r} is no variant in {folder}: there is {others}; leave it out")


def _check_sampling(folder: Path, config: ModelConfig, sampling: SamplingConfig, gradients: bool) -> None:
    """The scheduler is one of the family's and has so many steps; the negative has an effect at those that count."""
    family = check_family(folder, config.id)
    try:
        family.scheduler_of(read_scheduler(folder), config.id)
    except UserError as error:
        raise UserError(f"{error}" if config.id in f"{error}" else f"model {config.id!r}: {error}") from None
    with user_errors(f"model {config.id!r}: its configuration", "export or download it again"):
        model = family.without_weights(folder, **family.options(config))
    schedule = model.schedule(sampling.num_inference_steps)
    guidance = model.guidance(sampling, schedule)
    if gradients:
        check_gradient_steps(guidance, sampling)
