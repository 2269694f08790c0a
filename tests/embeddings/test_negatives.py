"""What methods name is found, checked, and told apart, before any model is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from renege_ray.config.run import RunConfig, parse_config, write_config
from renege_ray.embeddings.methods import parse_methods
from renege_ray.embeddings.negatives import Negative, resolve
from renege_ray.errors import UserError
from renege_ray.evaluation.inputs import noise_seed, read_evaluation_inputs, scores_of
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.text_encoder import hash_text_encoder
from renege_ray.prompts.sources import pair_seed, prompt_id, split_of
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import TunedPrompt, tuning_seeds
from tests.tiny import build_tiny_pipeline

PROMPTS = ["a red fox", "a hen", "two blue cows"]
LAYOUT = EmbeddingLayout(12, 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a finetuned one of the same encoder, one of another; an embedding; a run with two tuned prompts."""
    folder = tmp_path_factory.mktemp("place")
    pipeline = build_tiny_pipeline()
    pipeline.save_pretrained(folder / "model")
    other = build_tiny_pipeline(seed=1)
    other.save_pretrained(folder / "stranger")
    other.text_encoder = pipeline.text_encoder
    other.save_pretrained(folder / "sibling")
    metadata = EmbeddingMetadata(hash_text_encoder(pipeline.text_encoder), "TinyEncoder")
    for i, name in enumerate(("global", "other")):
        n = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(i)).half()
        NegativeEmbedding({"negative_prompt_embeds": n}, metadata).save(folder / f"{name}.safetensors")
    rows = [
        make_row(PromptToTune(text), TunedPrompt(text, n, 0, 0, False, (), {}, 0.0), {}, ([1], [2]), False)
        for text in PROMPTS[:2]
        for n in [torch.randn(1, 12, 16)]
    ]
    table = TuningTable(str(folder / "run" / "prompts-x"))
    table.write(rows, table_schema([], LAYOUT, metadata.to_header()))
    write_config(parse_config({"tuning": {"init": str(folder / "other.safetensors")}}), folder / "run")
    return folder


def configure(place: Path, **evaluation: object) -> RunConfig:
    return parse_config(
        {
            "model": {"id": str(place / "model")},
            "prompts": {"handwritten": ["ugly", "dark"]},
            "evaluation": evaluation,
        }
    )


def found(place: Path, *specs: str, prompts: list[str] = PROMPTS[:2], **evaluation: object) -> list[Negative]:
    methods = parse_methods([spec.replace("@", str(place)) for spec in specs])
    return list(resolve(methods, configure(place, **evaluation), prompts))


def test_what_a_method_stands_for(place: Path) -> None:
    null, hand, own, text, learned, tuned, other = found(
        place, "null", "handwritten", "handwritten=dim", "text=sad", "global=@/global.safetensors", "prompt=@/run",
        "model=@/sibling:global=@/global.safetensors,as=other",
    )  # fmt: skip
    assert (null.text, null.embedding, null.table) == (None, None, "")
    assert (hand.text, own.text, text.text) == ("ugly", "dim", "sad")
    stored = NegativeEmbedding.load(place / "global.safetensors").prompt_embeds.float()
    assert learned.embedding is not None and torch.equal(learned.embedding, stored)
    assert tuned.table == str(place / "run" / "prompts-x") and tuned.embedding is None
    assert other.model.id == str(place / "sibling") and learned.model.id == str(place / "model")
    again = found(place, "global=@/global.safetensors,as=else", "prompt=@/run", prompts=PROMPTS[:1])
    assert [n.key for n in again] == [learned.key, tuned.key], "neither labels nor prompts are part of a key"
    assert len({n.key for n in (null, hand, own, text, learned, tuned, other)}) == 7


def test_prompts_that_a_table_lacks(place: Path) -> None:
    with pytest.raises(UserError, match=r"--method prompt=.*1 of the 3 prompts .*'two blue cows'.*--allow-missing"):
        found(place, "prompt=@/run", prompts=PROMPTS)
    (start,) = found(place, "prompt=@/run", prompts=PROMPTS, allow_missing=True)
    stored = {n: NegativeEmbedding.load(place / f"{n}.safetensors").prompt_embeds.float() for n in ("global", "other")}
    assert start.embedding is not None and torch.equal(start.embedding, stored["other"]), "what they were tuned from"
    _, beside = found(place, "global=@/global.safetensors", "prompt=@/run", prompts=PROMPTS, allow_missing=True)
    assert beside.embedding is not None and torch.equal(beside.embedding, stored["global"])
    assert start.key != beside.key
    with pytest.raises(UserError, match="none of the 1 prompts"):
        found(place, "prompt=@/run", prompts=["a cow"], allow_missing=True)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["global=none.safetensors"], r"^--method global=none.safetensors: .*no such file"),
        (["model=@/stranger:global=@/global.safetensors"], r"learned for the text encoder TinyEncoder"),
        (["model=@/stranger:prompt=@/run"], r"learned for the text encoder TinyEncoder"),
        (["prompt=@/nowhere"], r"there is no such folder"),
        (["model=./nowhere:null"], r"nowhere.*no such folder"),
        (["handwritten", "text=ugly"], r"^--method text=ugly: makes the same images as --method handwritten"),
    ],
)
def test_faults(place: Path, specs: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        found(place, *specs)
    assert "\n" not in str(caught.value)


def test_images_and_notes(place: Path, tmp_path: Path) -> None:
    """Every method has the same prompts and seeds, none of which tuning has used; styles come from the file."""
    (tmp_path / "p.csv").write_text(
        "prompt,style\n" + "".join(f"fox {i},{'ab'[i % 2]}\n" for i in range(10)) + "fox 1,b\n"
    )
    config = configure(
        place,
        methods=["null", "handwritten"],
        prompts=f"{tmp_path / 'p.csv'}:prompt",
        num_prompts=4,
        seeds_per_prompt=3,
    )
    inputs = read_evaluation_inputs(config)
    assert (inputs.prompts, inputs.pairs, len(inputs.images)) == (4, 12, 24)
    first, second = ([image for image in inputs.images if image.method == m] for m in (0, 1))
    assert [(i.prompt, i.seed, i.pair_index) for i in first] == [(i.prompt, i.seed, i.pair_index) for i in second]
    for image in first:
        assert image.seed == pair_seed(noise_seed(0), image.prompt_id, image.pair_index)
        assert image.seed not in sum(tuning_seeds(config, image.prompt), ())
    assert any("12 prompt and seed pairs" in note for note in inputs.notes)
    chosen = sorted(prompt_id(f"fox {i}") for i in range(10))[:4]
    assert sorted({image.prompt_id for image in inputs.images}) == chosen, "the mixture that tuning takes, too"


def test_prompts_that_training_saw_are_left_out(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "p.txt"
    source.write_text("\n".join(f"fox {i}" for i in range(200)))
    config = configure(place, methods=["null"], prompts=str(source))
    names = {split: str(source) for split in ("train", "validation", "held_out")}
    shared = config.model_copy(update={"prompts": config.prompts.model_copy(update=names)})
    assert len(read_evaluation_inputs(config).images) == 200
    left = {image.prompt_id for image in read_evaluation_inputs(shared).images}
    assert left == {i for p in range(200) for i in [prompt_id(f"fox {p}")] if split_of(i, names) == "held_out"}  # type: ignore[arg-type]


def test_what_is_measured() -> None:
    def scores(rewards: dict[str, Any], *chosen: str) -> tuple[tuple[str, ...], ...]:
        found = scores_of(parse_config({"rewards": rewards, "evaluation": {"rewards": list(chosen)}}))
        return found.train, found.held_out, found.judges

    rewards = {"train": {"hpsv2": 1.0, "clip": 2.0}, "held_out": ["pickscore"], "judges": ["aesthetic", "clip"]}
    assert scores(rewards) == (("hpsv2", "clip"), ("pickscore",), ("aesthetic",))
    assert scores(rewards, "imagereward", "hpsv2-v2.1", "pickscore") == (
        ("hpsv2-v2.1",),
        ("pickscore",),
        ("imagereward",),
    )
