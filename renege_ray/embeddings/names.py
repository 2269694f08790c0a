"""What is compared in an evaluation: a negative, on a model, with or without refined prompts.

Users write

    null                        what the model's pipeline takes where it is given no negative
    handwritten[=TEXT]          a negative prompt; by default the first of `prompts.handwritten`, which the presets of
                                real models set to the long list that the paper compares with
    global=FILE                 an embedding learned for all prompts
    prompt=FOLDER               the embeddings of tuned prompts, each with its own
    text=TEXT                   any other negative prompt
    model=ID:NEGATIVE           one of the above with another model (a fine-tuned one, say)

and behind any of them

    ,refine=NAME                prompts refined by a language model before they are drawn
    ,as=LABEL                   what to call it in tables, instead of a name made from the above

`parse_methods` reads these words, and `resolve` finds and checks what they name before any model is loaded: texts and
embeddings (see `renege_ray.sampling.negative`), tables of tuned prompts, models and refiners.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path

from torch import Tensor

from renege_ray.config.faults import did_you_mean
from renege_ray.config.fingerprint import settled_model
from renege_ray.config.paths import METHOD_KINDS
from renege_ray.config.run import ModelConfig, RunConfig
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.embeddings.tables import run_of_table
from renege_ray.errors import UserError
from renege_ray.models.load import identify_text_encoder
from renege_ray.output.names import alike, is_in_words
from renege_ray.prompts.refine import REFINERS, locate_refiner
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import NULL, Encoder, Negative, read_negative, read_start
from renege_ray.training.inputs import check_model_and_lora

KINDS = METHOD_KINDS
FORMS = "null, handwritten, handwritten=TEXT, global=FILE, prompt=FOLDER, text=TEXT, model=ID:ONE_OF_THESE"
_OPTION = re.compile(r"^(?P<rest>.*),\s*(?P<name>refine|as)=(?P<value>[^,]*)$", re.DOTALL)
# The first colon that a negative follows, so that an id or a folder may have colons of its own.
_MODEL = re.compile(rf"^model=(?P<id>.+?):(?P<rest>(?:{'|'.join(KINDS)})(?:=.*)?)$", re.DOTALL)
_WANTED = {"global": "an embedding file", "prompt": "the output folder of tune-prompts", "text": "a text"}
_BETWEEN_WORDS = " _.:-"  # of labels: no slash, which separates the parts of a metric's name
FALLBACK = "fallback: global"


@dataclass(frozen=True)
class Method:
    """One method, as the user wrote it."""

    kind: str
    """One of `KINDS`."""
    value: str
    """The text, file or folder behind it, "" where there is none."""
    model: str
    """An id, or "" for the configuration's own."""
    refine: str
    """A refiner, or ""."""
    label: str
    """What all results call it."""
    spec: str
    """As the user wrote it."""


def parse_methods(specs: Sequence[str]) -> tuple[Method, ...]:
    """The methods of a command line, with labels of which no two are the same.

    Raises:
        UserError: a form that is not known, something missing in it, or a method or label given twice.
    """
    found: list[Method] = []
    for spec in specs:
        method, named = _parse(spec)
        if any(method.spec == other.spec for other in found):
            raise UserError(f"--method {spec}: is given twice; give it once")
        labels = {alike(other.label) for other in found}  # some stores take small letters and capitals for the same
        if alike(method.label) in labels:
            if named:
                raise UserError(f"--method {spec}: another method is called {method.label!r} too; give other labels")
            numbered = (f"{method.label} {number}" for number in count(2))
            method = replace(method, label=next(label for label in numbered if alike(label) not in labels))
        found.append(method)
    return tuple(found)


def _parse(spec: str) -> tuple[Method, bool]:
    """A method, and whether the user has named it."""
    rest, options = spec.strip(), {"refine": "", "as": ""}
    while match := _OPTION.match(rest):
        name, value = match["name"], match["value"].strip()
        if not value or options[name]:
            raise UserError(f"--method {spec}: {name}= wants one name")
        options[name], rest = value, match["rest"]
    if options["refine"] and options["refine"] not in REFINERS:
        hint = did_you_mean(options["refine"], REFINERS)
        raise UserError(
            f"--method {spec}: there is no refiner {options['refine']!r}; {hint}known: {', '.join(REFINERS)}"
        )
    model = ""
    if rest.startswith("model="):
        found = _MODEL.match(rest)
        if found is None:
            raise UserError(f"--method {spec}: want model=ID:NEGATIVE, such as model=ID:null")
        model, rest = found["id"], found["rest"]
    kind, equals, value = rest.partition("=")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise UserError(f"--method {spec}: {kind!r} is no method; {hint}known: {FORMS}")
    if kind == "null" and equals:
        raise UserError(f"--method {spec}: null takes no value")
    if (kind in _WANTED and not value.strip()) or (equals and not value.strip()):
        raise UserError(f"--method {spec}: {kind}= wants {_WANTED.get(kind, 'a text')}")
    label = options["as"] or _label(kind, model, options["refine"])
    if not all(map(_in_labels, label)):
        raise UserError(f"--method {spec}: a label has letters, digits, spaces and _ . : - only")
    return Method(kind, value, model, options["refine"], label, spec.strip()), bool(options["as"])


def _label(kind: str, model: str, refiner: str) -> str:
    words = "".join(character if _in_labels(character) else "-" for character in Path(model).name)
    on = f" on {words}" if model else ""
    return f"{kind}{on}" + (f" with {refiner}" if refiner else "")


def _in_labels(character: str) -> bool:
    return character in _BETWEEN_WORDS or is_in_words(character)


@dataclass(frozen=True)
class ComparedNegative:
    """A method, ready to be used by a worker."""

    method: Method
    model: ModelConfig
    """That it draws with."""
    negative: Negative = NULL
    """Of all prompts, or of those that a table of tuned prompts lacks."""
    refiner: tuple[str, str] | None = None
    """The folders of a refiner's model and tokenizer, or None."""
    table: str = ""
    """Where tuned prompts are, or ""."""
    key: str = ""
    """Of all that an image made by it depends on, besides the prompt, the seed and the configuration."""

    @property
    def label(self) -> str:
        """What all results call it."""
        return self.method.label

    def embedding_for(
        self, prompt: str, encoded: EncodedPrompts, opened: Callable[[str], PromptEmbeddings]
    ) -> tuple[Tensor, str]:
        """The negative (1, L, D) float32 on the CPU for a prompt, and what marks its row, "" for nothing.

        `opened`: gives the table of that name.
        """
        if self.table and prompt in (table := opened(self.table)):
            return table[prompt].float(), ""
        return self.negative.packed(encoded), FALLBACK if self.table else ""


def resolve(methods: Sequence[Method], config: RunConfig, prompts: Sequence[str]) -> tuple[ComparedNegative, ...]:
    """Find and check what the methods name.

    Args:
        prompts: that a table of tuned prompts should have.

    Raises:
        UserError: a file or folder that is missing or damaged, an embedding for another text encoder, a table that
            lacks prompts (the message says how many) without `evaluation.allow_missing`, or a refiner or model that
            cannot be had; the message names the method.
    """
    found: list[ComparedNegative] = []
    encoders = {method.model: cache(partial(identify_text_encoder, _model_of(method, config))) for method in methods}
    for method in methods:
        try:
            compared = _resolve(method, methods, config, dict.fromkeys(prompts), encoders[method.model])
        except UserError as error:
            raise UserError(f"--method {method.spec}: {error}") from None
        same = next((other.method.spec for other in found if other.key == compared.key), None)
        if same is not None:
            raise UserError(f"--method {method.spec}: makes the same images as --method {same}; leave one of them out")
        found.append(compared)
    return tuple(found)


def open_table(folder: str, encoder: Encoder) -> PromptEmbeddings:
    """The tuned prompts of a run's output folder, for a model with this text encoder.

    Raises:
        UserError: there are none, or they do not fit.
    """
    table, identity = PromptEmbeddings.open(folder), encoder()
    layout = identity.layout.fitting(table.layout.negative_tokens)
    table.check_fits(layout.shapes, identity.hash, identity.name)
    return table


def _resolve(
    method: Method, methods: Sequence[Method], config: RunConfig, prompts: Collection[str], encoder: Encoder
) -> ComparedNegative:
    model = _model_of(method, config)
    if method.model:
        check_model_and_lora(model, config.sampling, gradients=False)
    refiner = locate_refiner(method.refine, config.evaluation.refiners) if method.refine else None
    if method.kind != "prompt":
        negative = read_negative(method.kind, method.value, config, encoder)
        return _with_key(ComparedNegative(method, model, negative, refiner))
    with open_table(method.value, encoder) as table:
        missing = [prompt for prompt in prompts if prompt not in table]
        root, state = table.root, table.state()
    if missing and not config.evaluation.allow_missing:
        raise UserError(
            f"{len(missing)} of the {len(prompts)} prompts have no tuned embedding in {method.value} (the first is "
            f"{missing[0][:60]!r}); tune them, or use the global embedding for them by --allow-missing"
        )
    if missing and len(missing) == len(prompts):
        raise UserError(
            f"none of the {len(prompts)} prompts has a tuned embedding in {method.value}; name another table"
        )
    negative = _fallback(method, methods, config, encoder) if missing else NULL
    return _with_key(ComparedNegative(method, model, negative, refiner, root), state)


def _model_of(method: Method, config: RunConfig) -> ModelConfig:
    if not method.model:
        return config.model
    return config.model.model_copy(update={"id": method.model, "revision": None, "variant": None, "lora": None})


def _fallback(method: Method, methods: Sequence[Method], config: RunConfig, encoder: Encoder) -> Negative:
    """What prompts without an embedding get: that of a global= method on this model, else the table's start."""
    for other in methods:
        if (other.kind, other.model) == ("global", method.model):
            return read_negative("global", other.value, config, encoder)
    tuned = run_of_table(method.value)
    if tuned is None:
        raise UserError("what its prompts were tuned from is not known; give it as another method, global=FILE")
    return read_start(tuned.tuning.init, "tuning.init", tuned, encoder)


def _with_key(compared: ComparedNegative, *state: str) -> ComparedNegative:
    """With 16 hex digits of what the images depend on; a label is not among that. `state`: of a table."""
    method, negative = compared.method, compared.negative
    facts = {
        "kind": "text" if negative.text is not None and not compared.table else method.kind,
        "text": negative.text,
        "model": settled_model(compared.model.model_dump(mode="json")) if method.model else None,
        "refine": [method.refine, repr(REFINERS[method.refine]), compared.refiner] if method.refine else None,
        "more": state,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii"))
    if negative.embedding is not None:
        digest.update(negative.embedding.contiguous().numpy().tobytes())
    return replace(compared, key=digest.hexdigest()[:16])
