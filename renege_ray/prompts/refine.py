"""Prompts refined by a language model before they are drawn: the positive counterpart of a negative.

A refiner completes a template that holds the prompt. Promptist and BeautifulPrompt, with which the paper compares, are
two such templates and models; both are greedy or beam searches here, so that a prompt has one refinement and not
another one each time. Rewards judge the images by the prompt as the user wrote it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import torch

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors


class Refiner(Protocol):
    """Says a prompt in other words; a function of the prompt alone."""

    def __call__(self, prompt: str) -> str:
        """The refined prompt; the prompt itself where nothing comes of it."""
        ...


@dataclass(frozen=True)
class RefinerFacts:
    """A refiner of which only the weights are still to be read."""

    model: str
    """The causal language model on the Hub."""
    template: str
    """With {prompt} in it."""
    tokenizer: str = ""
    """On the Hub, "" if it comes with the model."""
    max_new_tokens: int = 75
    """The refinement is not longer."""
    beams: int = 1
    """Of the search; 1 is greedy."""
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0


REFINERS = {
    # Hao et al., "Optimizing Prompts for Text-to-Image Generation", 2023; the settings of their demonstration.
    "promptist": RefinerFacts(
        "microsoft/Promptist",
        "{prompt} Rephrase:",
        tokenizer="openai-community/gpt2",
        max_new_tokens=75,
        beams=8,
        length_penalty=-1.0,
    ),
    # Cao et al., "BeautifulPrompt", 2023; the template and the penalty of their model card, which samples.
    "beautifulprompt": RefinerFacts(
        "alibaba-pai/pai-bloom-1b1-text2prompt-sd",
        "Instruction: Give a simple description of the image to generate a drawing prompt.\nInput: {prompt}\nOutput:",
        max_new_tokens=384,
        repetition_penalty=1.2,
    ),
}


class LanguageModelRefiner:
    """A refiner that is a causal language model of transformers."""

    def __init__(self, model: Any, tokenizer: Any, facts: RefinerFacts) -> None:
        """`model` and `tokenizer`: of transformers, the model in eval mode."""
        self._model, self._tokenizer, self._facts = model, tokenizer, facts
        self._refined = lru_cache(maxsize=10_000)(self._refine)

    def __call__(self, prompt: str) -> str:
        """The completion of the template, in one line; the prompt itself where that is empty."""
        return self._refined(prompt)

    @torch.no_grad()
    def _refine(self, prompt: str) -> str:
        """One prompt at a time: what a batch has beside it would change the last digits, and then words."""
        text = self._facts.template.replace("{prompt}", " ".join(prompt.split()))
        room = int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 30) - self._facts.max_new_tokens
        ids = self._tokenizer(text, return_tensors="pt").input_ids.to(self._model.device)
        if ids.shape[1] > room:
            return prompt  # a prompt this long needs no refinement, and its template would be cut
        stop = self._tokenizer.eos_token_id
        found = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=self._facts.max_new_tokens,
            num_beams=self._facts.beams,
            repetition_penalty=self._facts.repetition_penalty,
            eos_token_id=stop,
            pad_token_id=stop,
            **({"length_penalty": self._facts.length_penalty} if self._facts.beams > 1 else {}),
        )
        said = takewhile(lambda token: token != stop, found[0, ids.shape[1] :].tolist())
        words: str = self._tokenizer.decode(list(said), skip_special_tokens=True)
        return " ".join(words.split()) or prompt


def locate_refiner(name: str, copies: Mapping[str, str]) -> tuple[str, str]:
    """The folders of a refiner's model and tokenizer; the Hub's files are downloaded here, and nothing is loaded.

    Args:
        name: one of `REFINERS`.
        copies: local copies, {name: folder}; a tokenizer that lies in the same folder is taken.

    Raises:
        UserError: there is no such folder, or the Hub's files cannot be had; the message says what to do.
    """
    facts = REFINERS[name]
    if name not in copies:
        return _from_hub(name, facts.model), _from_hub(name, facts.tokenizer or facts.model, tokenizer=True)
    folder = Path(copies[name]).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise UserError(f"evaluation.refiners: {name}: {folder} holds no model (config.json is missing)")
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "tokenizer_config.json"))
    if facts.tokenizer and not has_tokenizer:
        return str(folder), _from_hub(name, facts.tokenizer, tokenizer=True)
    return str(folder), str(folder)


def load_refiner(name: str, folders: tuple[str, str], device: torch.device | str = "cpu") -> Refiner:
    """A refiner by name, from the folders that `locate_refiner` has found.

    The published weights are older than safetensors; torch's unpickler that knows nothing but tensors reads them.

    Raises:
        UserError: a file is missing or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # takes seconds to import

    with user_errors(f"evaluation.refiners: {name} in {folders[0]}", "download it again"):
        tokenizer = AutoTokenizer.from_pretrained(folders[1], local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folders[0], local_files_only=True, weights_only=True, dtype=torch.float32
        )
    return LanguageModelRefiner(model.eval().requires_grad_(False).to(device), tokenizer, REFINERS[name])


def _from_hub(name: str, repository: str, *, tokenizer: bool = False) -> str:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt"] if tokenizer else ["*.json", "*.txt", "*.safetensors", "*.bin"]
    remedy = f"give a local copy: --evaluation.refiners '{{{name}: FOLDER}}'"
    with user_errors(f"refine={name}: {repository}", remedy, hub=True):
        return snapshot_download(repository, allow_patterns=wanted)
