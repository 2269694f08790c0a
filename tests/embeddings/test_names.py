"""What users write behind --method, what is wrong with it; what it names is found, checked, and told apart, before any
model is loaded.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from renege_ray.config.run import RunConfig, parse_config, write_config
from renege_ray.embeddings.names import ComparedNegative, parse_methods, resolve
from renege_ray.errors import UserError
from renege_ray.evaluation.inputs import noise_seed, read_evaluation_inputs, scores_of
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.text_encoder import hash_text_encoder
from renege_ray.prompts.sources import pair_seed, prompt_id, split_of
from renege_ray.sampling.negative import NULL
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
        {"model": {"id": str(place / "model")}, "prompts": {"handwritten": ["ugly", "dark"]}, "evaluation": evaluation}
    )


def found(place: Path, *specs: str, prompts: list[str] = PROMPTS[:2], **evaluation: object) -> list[ComparedNegative]:
    methods = parse_methods([spec.replace("@", str(place)) for spec in specs])
    return list(resolve(methods, configure(place, **evaluation), prompts))


@pytest.mark.parametrize(
    ("spec", "kind", "value", "model", "refine", "label"),
    [
        ("null", "null", "", "", "", "null"),
        ("handwritten", "handwritten", "", "", "", "handwritten"),
        ("handwritten=low quality, blurry", "handwritten", "low quality, blurry", "", "", "handwritten"),
        ("global=a=b/n.safetensors", "global", "a=b/n.safetensors", "", "", "global"),
        ("prompt=outputs/RUN", "prompt", "outputs/RUN", "", "", "prompt"),
        ("text=a: b, c=d", "text", "a: b, c=d", "", "", "text"),
        ("null,refine=promptist", "null", "", "", "promptist", "null with promptist"),
        ("text=dark, dim, refine=promptist , as=mine", "text", "dark, dim", "", "promptist", "mine"),
        ("global=f.pt,as=lr 3e-3,refine=promptist", "global", "f.pt", "", "promptist", "lr 3e-3"),
        ("model=x/sd-1.4:null", "null", "", "x/sd-1.4", "", "null on sd-1.4"),
        ("model=/a:b/c d:global=/e:f.pt", "global", "/e:f.pt", "/a:b/c d", "", "global on c d"),
        ("model=本地/模型 1:null", "null", "", "本地/模型 1", "", "null on 模型 1"),
        ("null,as=लाल तारा", "null", "", "", "", "लाल तारा"),
        ("model=toy:text=null:null", "text", "null:null", "toy", "", "text on toy"),
        ("model=m:null,refine=beautifulprompt", "null", "", "m", "beautifulprompt", "null on m with beautifulprompt"),
    ],
)
def test_forms(spec: str, kind: str, value: str, model: str, refine: str, label: str) -> None:
    (method,) = parse_methods([spec])
    assert (method.kind, method.value, method.model, method.refine, method.label) == (kind, value, model, refine, label)


def test_labels_are_unique() -> None:
    methods = parse_methods(["global=a.pt", "global=b.pt", "global=c.pt", "global=d.pt,as=e"])
    assert [method.label for method in methods] == ["global", "global 2", "global 3", "e"]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["nul"], "did you mean null?"),
        (["outputs/n.safetensors"], "is no method; known: null, handwritten"),
        (["global"], "global= wants an embedding file"),
        (["prompt= "], "prompt= wants the output folder of tune-prompts"),
        (["handwritten="], "handwritten= wants a text"),
        (["null=x"], "null takes no value"),
        (["model=x"], "want model=ID:NEGATIVE"),
        (["model=x:glob=y"], "want model=ID:NEGATIVE"),
        (["null,refine=promtist"], "did you mean promptist?"),
        (["null,refine="], "refine= wants one name"),
        (["null,as=a,as=b"], "as= wants one name"),
        (["null,as=a/b"], "a label has letters"),
        (["null", "null"], "--method null: is given twice"),
        (["null,as=x", "handwritten,as=x"], "another method is called 'x' too"),
        (["null,as=Mine", "handwritten,as=mine"], "another method is called 'mine' too"),
        (["null,as=\u00e9", "handwritten,as=e\u0301"], "another method is called"),
        (["null,as=a\tb"], "a label has letters"),
    ],
)
def test_faults_of_words(specs: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_methods(specs)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_method_stands_for(place: Path) -> None:
    null, hand, own, text, learned, tuned, other = found(
        place, "null", "handwritten", "handwritten=dim", "text=sad", "global=@/global.safetensors", "prompt=@/run",
        "model=@/sibling:global=@/global.safetensors,as=other",
    )  # fmt: skip
    assert (null.negative, null.table) == (NULL, "")
    assert tuple(method.negative.text for method in (hand, own, text)) == ("ugly", "dim", "sad")
    stored = NegativeEmbedding.load(place / "global.safetensors").prompt_embeds.float()
    assert learned.negative.embedding is not None and torch.equal(learned.negative.embedding, stored)
    assert tuned.table == str(place / "run" / "prompts-x") and tuned.negative == NULL
    assert other.model.id == str(place / "sibling") and learned.model.id == str(place / "model")
    again = found(place, "global=@/global.safetensors,as=else", "prompt=@/run", prompts=PROMPTS[:1])
    assert [n.key for n in again] == [learned.key, tuned.key], "neither labels nor prompts are part of a key"
    assert len({n.key for n in (null, hand, own, text, learned, tuned, other)}) == 7


def test_prompts_that_a_table_lacks(place: Path) -> None:
    with pytest.raises(UserError, match=r"--method prompt=.*1 of the 3 prompts .*'two blue cows'.*--allow-missing"):
        found(place, "prompt=@/run", prompts=PROMPTS)
    (start,) = found(place, "prompt=@/run", prompts=PROMPTS, allow_missing=True)
    stored = {n: NegativeEmbedding.load(place / f"{n}.safetensors").prompt_embeds.float() for n in ("global", "other")}
    _, beside = found(place, "global=@/global.safetensors", "prompt=@/run", prompts=PROMPTS, allow_missing=True)
    assert start.negative.embedding is not None and beside.negative.embedding is not None
    assert torch.equal(start.negative.embedding, stored["other"]), "what they were tuned from"
    assert torch.equal(beside.negative.embedding, stored["global"])
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
