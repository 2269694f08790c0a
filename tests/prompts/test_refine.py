"""The refiner on a tiny GPT-2, against a search that is written out."""

from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from renege_ray.errors import UserError
from renege_ray.prompts.refine import REFINERS, LanguageModelRefiner, RefinerFacts, load_refiner, locate_refiner

NEW_TOKENS = 6


def build_tiny_gpt2(seed: int = 0) -> tuple[GPT2LMHeadModel, GPT2Tokenizer]:
    """Every byte is a token; weights large enough that the choice of a token depends on those before it."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = GPT2Config(
        vocab_size=len(words), n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=len(words) - 1, eos_token_id=len(words) - 1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    model, tokenizer = build_tiny_gpt2()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def log_likelihood(model: GPT2LMHeadModel, start: list[int], more: list[int]) -> float:
    logits = model(torch.tensor([start + more])).logits[0].log_softmax(dim=-1)
    return sum(float(logits[len(start) - 1 + i, token]) for i, token in enumerate(more))


@torch.no_grad()
def search(model: GPT2LMHeadModel, start: list[int], beams: int) -> list[int]:
    """The most likely continuations of so many tokens, `beams` of them kept after each token; the best one."""
    kept: list[list[int]] = [[]]
    for _ in range(NEW_TOKENS):
        scored = []
        for tokens in kept:
            logits = model(torch.tensor([start + tokens])).logits[0, -1].log_softmax(dim=-1)
            base = log_likelihood(model, start, tokens) if tokens else 0.0
            scored += [(base + float(value), [*tokens, i]) for i, value in enumerate(logits)]
        kept = [tokens for _, tokens in sorted(scored, key=lambda pair: -pair[0])[:beams]]
    return kept[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_refinement_is_the_likeliest_completion_of_the_template(beams: int) -> None:
    model, tokenizer = build_tiny_gpt2()
    stop = tokenizer.eos_token_id
    facts = RefinerFacts("", "say {prompt} so:", max_new_tokens=NEW_TOKENS, beams=beams)
    refiner = LanguageModelRefiner(model, tokenizer, facts)
    for prompt in ("a fox", "two  red\ncows", "{prompt}"):
        start = tokenizer(f"say {' '.join(prompt.split())} so:").input_ids
        found = search(model, start, beams)
        assert stop not in found, "the tiny model does not end by itself; the search above does not know how to"
        assert refiner(prompt) == (" ".join(tokenizer.decode(found).split()) or prompt)
    assert refiner("a fox") == LanguageModelRefiner(model, tokenizer, facts)("a fox"), "whatever was asked before"


def test_the_stop_token_ends_a_refinement() -> None:
    model, tokenizer = build_tiny_gpt2()
    facts = RefinerFacts("", "{prompt}", max_new_tokens=NEW_TOKENS)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[:] = 0.0
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)  # of equal logits, the first wins
    assert LanguageModelRefiner(model, tokenizer, facts)("a fox") == "a fox", "nothing was said: the prompt stays"


def test_presets_are_read_from_local_copies(folder: Path) -> None:
    for name in REFINERS:
        refiner = load_refiner(name, locate_refiner(name, {name: str(folder)}))
        once, twice = refiner("a red fox"), refiner("a red fox")
        assert once == twice and once and "\n" not in once
    long = "fox " * 200
    assert refiner(long) == long, "a prompt that fills the model's context is left alone"


def test_faults(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"evaluation.refiners: promptist: .*config.json is missing"):
        locate_refiner("promptist", {"promptist": str(tmp_path)})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"refine=promptist: microsoft/Promptist .*--evaluation.refiners"):
        locate_refiner("promptist", {})
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match=r"promptist in .*damaged cannot be read"):
        load_refiner("promptist", locate_refiner("promptist", {"promptist": str(damaged)}))
