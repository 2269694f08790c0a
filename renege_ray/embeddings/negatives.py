"""Methods with all that they need: texts, embeddings, tables and models, found and checked before any is loaded."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from renege_ray.config.run import ModelConfig, RunConfig, read_config
from renege_ray.embeddings.methods import Method
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.errors import UserError
from renege_ray.models.base import TextToImage
from renege_ray.models.load import identify_text_encoder
from renege_ray.models.text_encoder import TextEncoderIdentity
from renege_ray.output.folder import CONFIG_FILE
from renege_ray.prompts.refine import REFINERS, locate_refiner
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.training.inputs import check_model_and_lora, read_embedding

FALLBACK = "fallback: global"
Encoder = Callable[[], TextEncoderIdentity]  # read when it is asked for


@dataclass(frozen=True)
class Negative:
    """A method, ready to be used by a worker.

    model: the model that it draws with. refiner: the folders of a refiner's model and tokenizer, or None.
    text: of a negative prompt, None where there is none. embedding: packed, (1, L, D) float32, or None.
    table: where tuned prompts are, or ""; text and embedding are then for prompts that it lacks. With none of the three
    it is the model's null embedding.
    key: of all that an image made by it depends on, besides the prompt, the seed and the configuration.
    """

    method: Method
    model: ModelConfig
    refiner: tuple[str, str] | None = None
    text: str | None = None
    embedding: Tensor | None = None
    table: str = ""
    key: str = ""

    @property
    def label(self) -> str:
        """What all results call it."""
        return self.method.label

    def embedding_for(
        self, prompt: str, model: TextToImage, encoded: EncodedPrompts, tables: Mapping[str, PromptEmbeddings]
    ) -> tuple[Tensor, str]:
        """The negative (1, L, D) float32 on the CPU for a prompt, and what marks its row, "" for nothing."""
        if self.table and prompt in tables[self.table]:
            return tables[self.table][prompt].float(), ""
        return self._common(model, encoded), FALLBACK if self.table else ""

    def _common(self, model: TextToImage, encoded: EncodedPrompts) -> Tensor:
        if self.embedding is not None:
            return self.embedding
        return (model.null_embedding() if self.text is None else encoded([self.text])).float().cpu()


def resolve(methods: Sequence[Method], config: RunConfig, prompts: Sequence[str]) -> tuple[Negative, ...]:
    """Find and check what the methods name.

    Args:
        prompts: that a table of tuned prompts should have.

    Raises:
        UserError: a file or folder that is missing or damaged, an embedding for another text encoder, a table that
            lacks prompts (the message says how many) without `evaluation.allow_missing`, or a refiner or model that
            cannot be had; the message names the method.
    """
    found: list[Negative] = []
    encoders = {method.model: cache(partial(identify_text_encoder, _model_of(method, config))) for method in methods}
    for method in methods:
        model, encoder = _model_of(method, config), encoders[method.model]
        try:
            negative = Negative(method, model)
            if method.model:
                check_model_and_lora(model, config.sampling.num_inference_steps)
            if method.refine:
                negative = replace(negative, refiner=locate_refiner(method.refine, config.evaluation.refiners))
            if method.kind in ("handwritten", "text"):
                negative = replace(negative, text=method.value or config.prompts.handwritten[0])
            if method.kind == "global":
                negative = replace(negative, embedding=read_embedding(method.value, encoder))
            if method.kind == "prompt":
                negative = _with_table(negative, encoder, methods, config, prompts)
        except UserError as error:
            raise UserError(f"--method {method.spec}: {error}") from None
        negative = replace(negative, key=negative.key or _key(negative))
        same = next((other.method.spec for other in found if other.key == negative.key), None)
        if same is not None:
            raise UserError(f"--method {method.spec}: makes the same images as --method {same}; leave one of them out")
        found.append(negative)
    return tuple(found)


def _model_of(method: Method, config: RunConfig) -> ModelConfig:
    if not method.model:
        return config.model
    return config.model.model_copy(update={"id": method.model, "revision": None, "variant": None, "lora": None})


def _with_table(
    negative: Negative,
    encoder: Encoder,
    methods: Sequence[Method],
    config: RunConfig,
    prompts: Sequence[str],
) -> Negative:
    folder = negative.method.value
    with PromptEmbeddings.open(folder) as table:
        identity = encoder()
        table.check_fits(identity.layout.shapes, identity.hash, identity.name)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in table]
        state = table.state()
    negative = replace(negative, table=table.root)
    if missing:
        wanted = len(dict.fromkeys(prompts))
        if not config.evaluation.allow_missing:
            raise UserError(
                f"{len(missing)} of the {wanted} prompts have no tuned embedding in {folder} (the first is "
                f"{missing[0][:60]!r}); tune them, or use the global embedding for them by --allow-missing"
            )
        if len(missing) == wanted:
            raise UserError(f"none of the {wanted} prompts has a tuned embedding in {folder}; name another table")
        negative = _with_fallback(negative, encoder, methods, config)
    return replace(negative, key=_key(negative, [state]))


def _with_fallback(negative: Negative, encoder: Encoder, methods: Sequence[Method], config: RunConfig) -> Negative:
    """What prompts without an embedding get: that of a global= method on this model, else the table's start."""
    method = negative.method
    files = [other.value for other in methods if other.kind == "global" and other.model == method.model]
    if files:
        return replace(negative, embedding=read_embedding(files[0], encoder))
    folder = Path(method.value)
    folder = folder if (folder / CONFIG_FILE).is_file() else folder.parent
    if not (folder / CONFIG_FILE).is_file():
        raise UserError("what its prompts were tuned from is not known; give it as another method, global=FILE")
    start = read_config(folder).tuning.init
    if start == "null":
        return negative
    if start == "handwritten":
        return replace(negative, text=read_config(folder).prompts.handwritten[0])
    return replace(negative, embedding=read_embedding(start, encoder))


def _key(negative: Negative, more: Iterable[str] = ()) -> str:
    """16 hex digits of what the images depend on; a label is not among that."""
    method = negative.method
    facts = {
        "kind": "text" if negative.text is not None and not negative.table else method.kind,
        "text": negative.text,
        "model": negative.model.model_dump(mode="json") if method.model else None,
        "refine": [method.refine, repr(REFINERS[method.refine]), negative.refiner] if method.refine else None,
        "more": list(more),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii"))
    if negative.embedding is not None:
        digest.update(negative.embedding.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
