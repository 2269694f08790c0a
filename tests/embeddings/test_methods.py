"""What users write behind --method, and what is wrong with it."""

import pytest

from renege_ray.embeddings.methods import parse_methods
from renege_ray.errors import UserError


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
    ],
)
def test_faults(specs: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_methods(specs)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
