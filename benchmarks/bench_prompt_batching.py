"""Prompts tuned as one batch against one by one: prompts per second, the same results, and how full slots are.

    python -m benchmarks.bench_prompt_batching [PROMPTS]

Both run Algorithm 1 of the preset `toy` in this process on two threads, without patience, so that both do the same
work. The slots are counted in a run of PROMPTS prompts with the preset's patience, in chunks as the job makes them,
with a cheap stand-in for the model: how full slots are hangs on how differently long prompts take, not on the model.
"""

import sys
import time

import torch

from benchmarks.fill import slots_filled
from renege_ray.config import RunConfig, load_preset, parse_config, to_mapping
from renege_ray.encoded_prompts import EncodedPrompts
from renege_ray.models import load_model
from renege_ray.models.toy.captions import prompts as toy_prompts
from renege_ray.train_global import Rewards
from renege_ray.tune_prompts import PromptTuner, TunedPrompt

AIM_RATE, AIM_FILLED = 1.5, 0.9
BATCH, UPDATES = 16, 3
