"""The embedded models: small text-to-image latent diffusion models that the package carries, with rewards and a judge.

There are two: `toy`, and `toy2`, whose UNet was trained on from the first one's, with the same text encoder and
autoencoder. What is learned with the one can be tried on the other. How they were trained and how good they are:
`MODEL_CARD.md` beside this file. `renege-ray toy export DIR` writes one as a folder for diffusers.
"""

from collections.abc import Mapping
from pathlib import Path

FIRST_MODEL, SECOND_MODEL = EMBEDDED_MODELS = ("toy", "toy2")

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
PIPELINE_FOLDER = WEIGHTS_FOLDER / "pipeline"
SECOND_UNET_FOLDER = WEIGHTS_FOLDER / "second_unet"
# What a model has instead of the parts in `PIPELINE_FOLDER`.
OWN_PARTS: Mapping[str, Mapping[str, Path]] = {FIRST_MODEL: {}, SECOND_MODEL: {"unet": SECOND_UNET_FOLDER}}

# What the models were made for; their card's figures are measured with these.
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.5
TRAINING_STEPS = 1000  # of their noise schedule
