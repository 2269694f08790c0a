"""What is compared in an evaluation, as users write it: a negative, on a model, with or without refined prompts.

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
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from renege_ray.config.faults import did_you_mean
from renege_ray.errors import UserError
from renege_ray.prompts.refine import REFINERS

KINDS = ("null", "handwritten", "global", "prompt", "text")
FORMS = "null, handwritten, handwritten=TEXT, global=FILE, prompt=FOLDER, text=TEXT, model=ID:ONE_OF_THESE"
_OPTION = re.compile(r"^(?P<rest>.*),\s*(?P<name>refine|as)=(?P<value>[^,]*)$", re.DOTALL)
# The first colon that a negative follows, so that an id or a folder may have colons of its own.
_MODEL = re.compile(rf"^model=(?P<id>.+?):(?P<rest>(?:{'|'.join(KINDS)})(?:=.*)?)$", re.DOTALL)
_WANTED = {"global": "an embedding file", "prompt": "the output folder of tune-prompts", "text": "a text"}
# What MLflow allows in the name of a metric, but for the slash that separates its parts.
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_.: -]+")


@dataclass(frozen=True)
class Method:
    """One method.

    kind: one of `KINDS`. value: the text, file or folder behind it, "" where there is none. model: an id, or "" for the
    configuration's own. refine: a refiner, or "". label: what all results call it. spec: as the user wrote it.
    """

    kind: str
    value: str
    model: str
    refine: str
    label: str
    spec: str


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
        if method.label in (other.label for other in found):
            if named:
                raise UserError(f"--method {spec}: another method is called {method.label!r} too; give other labels")
            method = _renamed(method, found)
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
    if not label.isascii() or _NOT_IN_LABELS.search(label):
        raise UserError(f"--method {spec}: a label has letters, digits, spaces and _ . : - only")
    return Method(kind, value, model, options["refine"], label, spec.strip()), bool(options["as"])


def _label(kind: str, model: str, refiner: str) -> str:
    words = [kind]
    if model:
        name = model.rstrip("/").rpartition("/")[2]
        words += ["on", _NOT_IN_LABELS.sub("-", name)]
    if refiner:
        words += ["with", refiner]
    return " ".join(words)


def _renamed(method: Method, others: Sequence[Method]) -> Method:
    labels = {other.label for other in others}
    number = next(n for n in range(2, len(labels) + 3) if f"{method.label} {n}" not in labels)
    return Method(method.kind, method.value, method.model, method.refine, f"{method.label} {number}", method.spec)
