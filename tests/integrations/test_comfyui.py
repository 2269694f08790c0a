"""The ComfyUI node, called as ComfyUI calls it: by its class, with a file's name and conditioning."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from renege_ray.method.embedding import PROMPT_EMBEDS, EmbeddingMetadata, NegativeEmbedding

NODE_FILE = Path(__file__).parents[2] / "integrations" / "comfyui" / "renege_negative_embedding.py"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("node_in_test", NODE_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module() -> ModuleType:
    return imported()


@pytest.fixture
def node(module: ModuleType) -> Any:
    return module.NODE_CLASS_MAPPINGS["RenegNegativeEmbedding"]()


def saved(path: Path, **tensors: torch.Tensor) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def test_it_says_of_itself_what_comfyui_asks_for(module: ModuleType, node: Any) -> None:
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    kind = type(node)
    assert kind.RETURN_TYPES == ("CONDITIONING",) and callable(getattr(node, kind.FUNCTION)) and kind.CATEGORY
    inputs = kind.INPUT_TYPES()
    assert list(inputs["required"]) == ["file"] and inputs["optional"] == {"positive": ("CONDITIONING",)}


def test_it_needs_nothing_but_what_comfyui_has() -> None:
    tree = ast.parse(NODE_FILE.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "safetensors", "folder_paths"}


def test_what_this_package_saves_comes_out_as_conditioning(node: Any, tmp_path: Path) -> None:
    n = random(1, 77, 768).half()
    NegativeEmbedding({PROMPT_EMBEDS: n}, EmbeddingMetadata("ab")).save(tmp_path / "n.safetensors")
    ((conditioning,),) = node.load(str(tmp_path / "n.safetensors"))
    tensor, extra = conditioning
    assert torch.equal(tensor, n.float()) and tensor.dtype == torch.float32 and extra == {}


def test_sdxl_has_its_pooled_output(node: Any, tmp_path: Path) -> None:
    embeds, pooled = random(1, 77, 2048), random(1, 1280)
    whole = saved(tmp_path / "a.safetensors", negative_prompt_embeds=embeds, negative_pooled_prompt_embeds=pooled)
    ((conditioning,),) = node.load(whole)
    assert torch.equal(conditioning[0], embeds) and torch.equal(conditioning[1]["pooled_output"], pooled)
    with pytest.raises(ValueError, match="is for SDXL, but has no negative_pooled_prompt_embeds"):
        node.load(saved(tmp_path / "b.safetensors", negative_prompt_embeds=embeds))


def test_tokens_that_the_mask_hides_are_left_out(node: Any, tmp_path: Path) -> None:
    """Attention over the shown tokens alone is what attention with the mask gives."""
    embeds, mask = random(1, 6, 8), torch.tensor([[1, 1, 0, 1, 0, 0]])
    path = saved(tmp_path / "n.safetensors", negative_prompt_embeds=embeds, negative_prompt_attention_mask=mask)
    ((conditioning,),) = node.load(path)
    query = random(1, 3, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    masked = attend(query, embeds, embeds, attn_mask=mask.bool()[:, None])
    torch.testing.assert_close(attend(query, conditioning[0], conditioning[0]), masked)


def test_repeating_to_a_longer_prompt_changes_no_prediction(
    node: Any, tmp_path: Path, tiny_pipeline: Callable[..., Any]
) -> None:
    unet = tiny_pipeline().unet
    width = unet.config.cross_attention_dim
    path = saved(tmp_path / "n.safetensors", negative_prompt_embeds=random(1, 12, width))
    ((as_stored,),) = node.load(path)
    ((repeated,),) = node.load(path, positive=[[random(1, 36, width), {}]])
    assert repeated[0].shape == (1, 36, width)
    latents = random(1, 4, 8, 8)
    with torch.no_grad():
        one, other = (unet(latents, 500, c[0]).sample for c in (as_stored, repeated))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tokens", [6, 12, 30])
def test_prompts_of_other_lengths_leave_it_as_it_is(node: Any, tmp_path: Path, tokens: int) -> None:
    path = saved(tmp_path / "n.safetensors", negative_prompt_embeds=random(1, 12, 8))
    ((conditioning,),) = node.load(path, positive=[[random(1, tokens, 8), {}]])
    assert conditioning[0].shape == (1, 12, 8)


def test_another_family_is_refused(node: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "n.safetensors", negative_prompt_embeds=random(1, 77, 768))
    with pytest.raises(ValueError, match="is 768 wide, but the prompt's conditioning 1024"):
        node.load(path, positive=[[random(1, 77, 1024), {}]])


WRONG: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "textual inversion": ({"emb_params": torch.zeros(4, 768)}, "is a textual inversion"),
    "textual inversion of SDXL": ({"clip_l": torch.zeros(4, 768), "clip_g": torch.zeros(4, 1280)}, "textual inversion"),
    "LoRA": ({"lora.up": torch.zeros(4, 4)}, r"holds \['lora.up'\]; want negative_prompt_embeds"),
    "more than it": (
        {"negative_prompt_embeds": torch.zeros(1, 4, 8), "other": torch.zeros(1)},
        r"holds \['negative_prompt_embeds', 'other'\]",
    ),
    "batch": ({"negative_prompt_embeds": torch.zeros(2, 4, 8)}, r"is \(2, 4, 8\)"),
    "integers": ({"negative_prompt_embeds": torch.zeros(1, 4, 8, dtype=torch.int64)}, "int64"),
    "not finite": ({"negative_prompt_embeds": torch.full((1, 4, 8), torch.nan)}, "NaN or infinite"),
    "mask of another length": (
        {"negative_prompt_embeds": torch.zeros(1, 4, 8), "negative_prompt_attention_mask": torch.ones(1, 5)},
        "does not fit its 4 tokens",
    ),
    "mask that hides all": (
        {"negative_prompt_embeds": torch.zeros(1, 4, 8), "negative_prompt_attention_mask": torch.zeros(1, 4)},
        "does not fit its 4 tokens",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_before_anything_runs(case: str, node: Any, tmp_path: Path) -> None:
    tensors, message = WRONG[case]
    path = saved(tmp_path / "n.safetensors", **tensors)
    with pytest.raises(ValueError, match=message):
        node.load(path)
    assert "n.safetensors" in type(node).VALIDATE_INPUTS(path)


def test_damaged_and_missing_files(node: Any, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        node.load(str(path))
    with pytest.raises(ValueError, match="there is no such file"):
        node.load(str(tmp_path / "none.safetensors"))
    assert "there is no such file" in type(node).VALIDATE_INPUTS(str(tmp_path / "none.safetensors"))


def test_in_comfyui_files_come_from_a_folder_of_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the node uses of ComfyUI's module `folder_paths`."""
    folders: dict[str, str] = {}
    monkeypatch.setitem(
        sys.modules,
        "folder_paths",
        SimpleNamespace(
            models_dir=str(tmp_path),
            add_model_folder_path=lambda name, path: folders.update({name: path}),
            get_filename_list=lambda name: sorted(path.name for path in Path(folders[name]).iterdir()),
            get_full_path=lambda name, file: str(Path(folders[name]) / file),
        ),
    )
    kind = imported().RenegNegativeEmbedding
    (tmp_path / "negative_embeddings").mkdir()
    saved(tmp_path / "negative_embeddings" / "n.safetensors", negative_prompt_embeds=random(1, 4, 8))
    (tmp_path / "negative_embeddings" / "notes.txt").write_text("")
    assert kind.INPUT_TYPES()["required"]["file"] == (["n.safetensors"],)
    assert kind.VALIDATE_INPUTS("n.safetensors") is True
    before = kind.IS_CHANGED("n.safetensors")
    assert kind().load("n.safetensors")[0][0][0].shape == (1, 4, 8)
    saved(tmp_path / "negative_embeddings" / "n.safetensors", negative_prompt_embeds=random(1, 4, 8) + 1)
    assert kind.IS_CHANGED("n.safetensors") != before
