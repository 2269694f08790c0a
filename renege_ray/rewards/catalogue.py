"""The rewards by name: what each one is, and the files that it is read from. Nothing heavy is imported here, so names
and paths can be checked before anything is loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from renege_ray.config.faults import nearest
from renege_ray.errors import UserError


@dataclass(frozen=True)
class Source:
    """Files that a reward is read from, in a repository of the Hugging Face Hub or in a local copy."""

    name: str
    """What `rewards.checkpoints` calls it."""
    repository: str
    files: tuple[str, ...]
    """Any one of these is enough in a local copy; the Hub has the first."""
    companions: tuple[str, ...] = ()
    """Files that have to lie beside it."""

    def __str__(self) -> str:
        return f"{' and '.join((self.files[0], *self.companions))} of {self.repository}"


@dataclass(frozen=True)
class RewardFacts:
    """What there is to say of a reward before it is loaded."""

    name: str
    """What the configuration and all results call it."""
    version: str
    module: str
    """The module of this package whose `load` makes it."""
    usual_range: tuple[float, float]
    """Most scores of ordinary generated images lie in it."""
    about: str
    sources: tuple[Source, ...] = ()
    """The weights first; what else there is may lie beside them."""
    reads_prompts: bool = True
    gflop: tuple[float, float] = (0, 0)
    """Of one image, and back to its pixels, without the text tower; tests/rewards/test_costs.py counts it."""
    gib: float = 0.0
    """Of its weights that stay on an accelerator: the image tower in bfloat16, a text tower that looks at the image in
    float32.
    """
    text_gib: float = 0.0
    """Of a text tower in float32 that is there only while it reads prompts."""
    beside: tuple[str, ...] = ()
    """What else it measures of an image as it judges it: logged, and nothing is ranked by it."""
    activations: float = 0.3
    """GiB of an image's activations on the way there and back, at most: those of a ViT-H, and the image in float32."""


# Any CLIP has the same vocabulary; it follows from the list of merges alone.
CLIP_VOCABULARY = Source("clip_vocabulary", "openai/clip-vit-large-patch14", ("merges.txt", "tokenizer.json"))
BERT_VOCABULARY = Source("bert_vocabulary", "google-bert/bert-base-uncased", ("vocab.txt",))
DINO = Source("dino", "facebook/dino-vitb16", ("pytorch_model.bin", "model.safetensors"), ("config.json",))
QWEN2_VL = Source("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", ("tokenizer.json",), ("config.json",))
CLIP_B = Source("clip_b", "openai/clip-vit-base-patch32", ("pytorch_model.bin", "model.safetensors"), ("config.json",))
CLIP_L = Source("clip", "openai/clip-vit-large-patch14", ("model.safetensors",), ("config.json",))

# GFLOP of CLIP's image towers at 224x224, forward and backward.
VIT_H, VIT_L = (334.6, 345.4), (162.0, 168.5)
# The second is what its authors call the first.
_AESTHETIC_FILES = ("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth")

_ALL = (
    RewardFacts("toy", "1", "toy", (-4, 5.5), "the embedded model's reward to train against", gflop=(0.018, 0.018)),
    RewardFacts(
        "toy_held_out",
        "1",
        "toy",
        (-4, 5),
        "the embedded model's reward that exposes reward hacking",
        gflop=(0.015, 0.015),
    ),
    RewardFacts(
        "hpsv2-v2.1",
        "v2.1",
        "hpsv2",
        (0.15, 0.35),
        "Human Preference Score v2.1: what people prefer, CLIP ViT-H/14",
        (Source("hpsv2-v2.1", "xswu/HPSv2", ("HPS_v2.1_compressed.pt",)), CLIP_VOCABULARY),
        gflop=VIT_H,
        gib=1.2,
        text_gib=1.3,
    ),
    RewardFacts(
        "hpsv2-v2.0",
        "v2.0",
        "hpsv2",
        (0.23, 0.31),
        "Human Preference Score v2.0: as above, an older training",
        (Source("hpsv2-v2.0", "xswu/HPSv2", ("HPS_v2_compressed.pt",)), CLIP_VOCABULARY),
        gflop=VIT_H,
        gib=1.2,
        text_gib=1.3,
    ),
    RewardFacts(
        "pickscore",
        "v1",
        "pickscore",
        (17, 24),
        "PickScore: what the users of Pick-a-Pic chose, CLIP ViT-H/14",
        (Source("pickscore", "yuvalkirstain/PickScore_v1", ("model.safetensors",), ("config.json",)), CLIP_VOCABULARY),
        gflop=VIT_H,
        gib=1.2,
        text_gib=1.3,
    ),
    RewardFacts(
        "clip",
        "ViT-L/14",
        "clip",
        (0.12, 0.35),
        "CLIPScore: does the image show what the prompt says (a cosine)",
        (CLIP_L, CLIP_VOCABULARY),
        gflop=VIT_L,
        gib=0.6,
        text_gib=0.5,
    ),
    RewardFacts(
        "aesthetic",
        "sac+logos+ava1-l14-linearMSE",
        "aesthetic",
        (4, 7.5),
        "LAION's aesthetic predictor v2: how well people rate the image, from 1 to 10",
        (Source("aesthetic", "trl-lib/ddpo-aesthetic-predictor", _AESTHETIC_FILES), CLIP_L),
        reads_prompts=False,
        gflop=VIT_L,
        gib=0.6,
    ),
    RewardFacts(
        "imagereward",
        "v1.0",
        "imagereward",
        (-2.3, 2.1),
        "ImageReward: what people prefer, BLIP",
        (Source("imagereward", "THUDM/ImageReward", ("ImageReward.pt",)), BERT_VOCABULARY),
        gflop=(137.8, 141.7),
        gib=1.1,
    ),
    RewardFacts(
        "hpsv3",
        "7B",
        "hpsv3.reward",
        (-5, 15),
        "Human Preference Score v3: what people prefer, by a language model that sees, Qwen2-VL 7B",
        (Source("hpsv3", "MizzenAI/HPSv3", ("HPSv3.safetensors",)), QWEN2_VL),
        gflop=(12_300, 25_000),
        gib=14.4,
        activations=0.9,
        beside=("hpsv3_sigma",),
    ),
)

# What measures videos, and cannot be trained against.
_VIDEO_METRICS = (
    RewardFacts(
        "temporal_flickering",
        "VBench",
        "video_metrics",
        (0.9, 1),
        "VBench's temporal flickering: how little a video changes from frame to frame",
        reads_prompts=False,
    ),
    RewardFacts(
        "subject_consistency",
        "VBench",
        "video_metrics",
        (0.8, 1),
        "VBench's subject consistency: how alike the frames' DINO features are",
        (DINO,),
        reads_prompts=False,
        gflop=(35.1, 36.6),
        gib=0.3,
    ),
    RewardFacts(
        "background_consistency",
        "VBench",
        "video_metrics",
        (0.9, 1),
        "VBench's background consistency: how alike the frames' CLIP features are",
        (CLIP_B,),
        reads_prompts=False,
        gflop=(8.8, 8.9),
        gib=0.3,
    ),
)
VIDEO_METRICS = {facts.name: facts for facts in _VIDEO_METRICS}
REWARDS = {facts.name: facts for facts in _ALL}
SHORT_NAMES = {"hpsv2": "hpsv2-v2.1"}
REWARD_NAMES = (*REWARDS, *SHORT_NAMES)
# What the judges measure, {judge: scores}.
_JUDGE = {
    "judge_clean": "the share of images in which the embedded model's judge finds no defect",
    **{f"judge_{part}": f"the share that has the {part} that the prompt asks for, by the embedded model's judge"
       for part in ("shape", "colour", "background", "size")},
}  # fmt: skip
JUDGE_SCORES = {"judge": tuple(_JUDGE), **{name: (name,) for name in VIDEO_METRICS}}
JUDGE_NAMES = tuple(JUDGE_SCORES)
# What a score says, in a few words.
ABOUT = {facts.name: facts.about for facts in (*_ALL, *_VIDEO_METRICS)} | _JUDGE
ABOUT["hpsv3_sigma"] = "how far people are apart about an image, by HPSv3, in its scores: no better or worse"
SOURCES = {source.name: source for facts in (*_ALL, *_VIDEO_METRICS) for source in facts.sources}


def full_name(name: str) -> str:
    """The name that results use, which names the version: "hpsv2" is "hpsv2-v2.1"."""
    return SHORT_NAMES.get(name, name)


def beside(name: str) -> tuple[str, ...]:
    """The names of what a reward measures beside its score; of what is no reward, none."""
    return REWARDS[full_name(name)].beside if full_name(name) in REWARDS else ()


def check_names(names: Iterable[str], known: Iterable[str], field: str) -> None:
    """Check names without loading anything.

    Raises:
        UserError: a name is not among the known ones; the nearest of them is suggested.
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else "give one of these"
            raise UserError(f"{field} {name!r} is not known: {hint} ({', '.join(known)})")
