"""A LoRA made here, with peft and diffusers, and what diffusers itself makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.load import identify_text_encoder, load_model
from renege_ray.models.loading.lora import check_lora
from tests.models.conformance import PROMPTS, Conformance, images_of
from tests.models.families.test_stable_diffusion import TestStableDiffusion1 as StableDiffusion1
from tests.models.families.test_stable_diffusion_xl import TestStableDiffusionXL as StableDiffusionXL
from tests.tiny import build_tiny_pipeline, build_tiny_sdxl, write_lora


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    for name, build in {"sd": build_tiny_pipeline, "sdxl": build_tiny_sdxl}.items():
        build().save_pretrained(root / name)
        write_lora(build(), root / f"{name}-unet")
        write_lora(build(), root / f"{name}-text", text=True)
    return root


@pytest.mark.parametrize("part", ["unet", "text"])
@pytest.mark.parametrize(("name", "family"), [("sd", StableDiffusion1), ("sdxl", StableDiffusionXL)])
@pytest.mark.slow
def test_images_are_those_of_diffusers_with_the_lora(
    loras: Path, name: str, family: type[Conformance], part: str
) -> None:
    config = ModelConfig(id=str(loras / name), lora=str(loras / f"{name}-{part}"))
    model, without = load_model(config, "cpu"), load_model(ModelConfig(id=config.id), "cpu")
    assert model.name == f"{name} + {name}-{part}"
    pipeline = family.plain_pipeline(loras / name)
    pipeline.load_lora_weights(loras / f"{name}-{part}")
    expected = family().call(pipeline, model, PROMPTS)
    images = images_of(model, PROMPTS, model.null_embedding())
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images - images_of(without, PROMPTS, without.null_embedding())).abs().max() > 0.01
    assert not any("lora" in key for key in model.pipeline.unet.state_dict())
    same_encoder = model.text_encoder_hash == without.text_encoder_hash
    assert same_encoder == (part == "unet"), "a LoRA of the text encoder makes it another one"
    assert identify_text_encoder(config).hash == model.text_encoder_hash


def test_a_file_is_as_good_as_its_folder(loras: Path) -> None:
    file = loras / "sd-unet" / "pytorch_lora_weights.safetensors"
    by_file, by_folder = (
        load_model(ModelConfig(id=str(loras / "sd"), lora=str(lora)), "cpu") for lora in (file, file.parent)
    )
    negative = by_file.null_embedding()
    assert torch.equal(images_of(by_file, PROMPTS, negative), images_of(by_folder, PROMPTS, negative))


def test_loras_that_do_not_fit(loras: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"hello.lora_A.weight": torch.ones(2, 2)}, tmp_path / "strange.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"noise" * 50)
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / "many" / f"{name}.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.bin").write_bytes(b"")
    cases = {
        str(loras / "sdxl-unet"): "size mismatch",
        str(tmp_path / "strange.safetensors"): "no layer",
        str(tmp_path / "damaged.safetensors"): "cannot be read",
        str(tmp_path / "many"): "2 .safetensors files",
        str(tmp_path / "empty"): "no .safetensors file",
        str(tmp_path / "pickled.bin"): "not a .safetensors file",
        "./none": "no such file",
        str(tmp_path / "none.safetensors"): "no such file",
        "latent-consistency/lcm-lora-sdv1-5": "distils guidance",
    }
    for lora, why in cases.items():
        capfd.readouterr()
        with pytest.raises(UserError, match=r"model\.lora: ") as caught:
            load_model(ModelConfig(id=str(loras / "sd"), lora=lora), "cpu")
        assert lora in str(caught.value) and why in str(caught.value) and "\n" not in str(caught.value)
        assert capfd.readouterr().err.count("\n") <= 1, "one line says it all"


def test_what_can_be_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    check_lora("somebody/some-lora")
    for lora in ("somebody/hyper-sd-lora", "./none", str(tmp_path)):
        with pytest.raises(UserError, match=r"model\.lora"):
            check_lora(lora)


@pytest.fixture
def plain(loras: Path) -> dict[str, torch.Tensor]:
    return load_file(loras / "sd-unet" / "pytorch_lora_weights.safetensors")


def refusal(loras: Path, file: Path) -> str:
    with pytest.raises(UserError, match=r"^model\.lora: ") as caught:
        load_model(ModelConfig(id=str(loras / "sd"), lora=str(file)), "cpu")
    assert "\n" not in str(caught.value) and not str(caught.value).rstrip().endswith(":")
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.dora_scale", "is a DoRA"),
        ("unet.mid_block.nowhere.to_q.lora.down.weight", "2 of its"),
        ("unet.up_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight", "have no place"),
        ("text_encoder.text_model.encoder.layers.9.self_attn.q_proj.lora_A.weight", "have no place"),
        ("lora_unet_mid_block.hada_w1_a", "is a LoHa"),
        ("lora_unet_mid_block.lokr_w1", "is a LoKr"),
    ],
)
def test_a_part_that_is_not_applied_is_named(
    loras: Path, plain: dict[str, torch.Tensor], tmp_path: Path, extra: str, said: str
) -> None:
    more = {extra: torch.full((2, 8), 0.5)}
    for down, up in (("lora_A", "lora_B"), ("lora.down", "lora.up")):
        if down in extra:
            more[extra.replace(down, up)] = torch.full((8, 2), 0.25)
    save_file(plain | more, tmp_path / "lora.safetensors")
    message = refusal(loras, tmp_path / "lora.safetensors")
    assert said in message and extra in message


def test_other_files_of_weights_are_no_lora(loras: Path, tmp_path: Path) -> None:
    for name, key in {"inversion": "emb_params", "ip": "image_proj.proj.weight", "loha": "x.hada_w1_a"}.items():
        save_file({key: torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
        refusal(loras, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 1}, "rank_pattern": {"to_k": 4}}]
)
def test_what_peft_writes_is_what_peft_computes(loras: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """adapter_model.safetensors, as TRL leaves it, with a scale that is not one."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(build_tiny_pipeline().unet, config)
    adapted.save_pretrained(str(tmp_path))
    merged = adapted.merge_and_unload().state_dict()
    for given in (tmp_path, tmp_path / "adapter_model.safetensors"):
        found = load_model(ModelConfig(id=str(loras / "sd"), lora=str(given)), "cpu").pipeline.unet.state_dict()
        for name, weight in merged.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
    (tmp_path / "adapter_config.json").rename(tmp_path / "aside.json")
    assert "has to lie beside it" in refusal(loras, tmp_path / "adapter_model.safetensors")
    dora = json.loads((tmp_path / "aside.json").read_text()) | {"use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(dora))
    assert "is a DoRA" in refusal(loras, tmp_path)


def test_kohya_s_names_and_scales(loras: Path, tmp_path: Path, plain: dict[str, torch.Tensor]) -> None:
    kohya = {}
    for name, tensor in plain.items():
        layer, _, side = name.removeprefix("unet.").partition(
            ".lora_" if ".lora_A" in name or ".lora_B" in name else ".lora."
        )
        down = side.startswith(("A", "down"))
        kohya[f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if down else 'up'}.weight"] = tensor
        kohya[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(1.0)  # of rank 2: half the strength
    save_file(kohya, tmp_path / "kohya.safetensors")
    base = load_model(ModelConfig(id=str(loras / "sd")), "cpu").pipeline.unet.state_dict()
    full = load_model(ModelConfig(id=str(loras / "sd"), lora=str(loras / "sd-unet")), "cpu").pipeline.unet.state_dict()
    half = load_model(ModelConfig(id=str(loras / "sd"), lora=str(tmp_path / "kohya.safetensors")), "cpu")
    changed = 0
    for name, weight in half.pipeline.unet.state_dict().items():
        torch.testing.assert_close(weight, (base[name] + full[name]) / 2, atol=1e-5, rtol=1e-4)
        changed += not torch.equal(base[name], full[name])
    assert changed >= 4
