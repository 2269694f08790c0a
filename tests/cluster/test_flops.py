"""The floating-point operations of a run, and its hours on a GPU that is not here."""

import json
from pathlib import Path

import pytest

from renege_ray.cluster.cost import Cost, evaluation_cost
from renege_ray.cluster.flops import Parts, ShapedModel, describe_hours, flops_of, hours_on, reward_flops
from renege_ray.cluster.plan import describe_evaluation_plan, describe_plan
from renege_ray.config.gpus import Gpu, gpu_of
from renege_ray.config.run import RunConfig, parse_config
from tests.tiny import build_tiny_pipeline, build_tiny_video

SD15 = {
    "unet": {
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "attention_head_dim": 8, "layers_per_block": 2, "norm_num_groups": 32,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae": {
        "sample_size": 512, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {"hidden_size": 768, "max_position_embeddings": 77},
}  # fmt: skip


def config_of(folder: Path, **more: object) -> RunConfig:
    return parse_config({"model": {"id": str(folder)}, "optim": {"steps": 10}} | more)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration files of Stable Diffusion 1.5."""
    folder = tmp_path_factory.mktemp("models") / "sd15"
    build_tiny_pipeline().save_pretrained(folder)
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    for file, changes in [
        *((folder / part / "config.json", changes) for part, changes in SD15.items()),
        (tokenizer, {"model_max_length": 77}),
    ]:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.slow
def test_the_known_figures_of_stable_diffusion(sd15: Path) -> None:
    """By other counts: GFLOP of the denoiser 803 and 866, of the decoder 2,515 and 2,549, of ViT-H 335 and 345."""
    shaped = ShapedModel.read(config_of(sd15))
    assert shaped.denoiser_flops() == pytest.approx((803e9, 866e9), rel=0.002)
    assert shaped.decoder_flops() == pytest.approx((2515e9, 2549e9), rel=0.002)
    assert reward_flops(["hpsv2"]) == pytest.approx((335e9, 345e9), rel=0.002)


def test_each_part_is_counted_as_often_as_it_is_run(tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path)
    shaped = ShapedModel.read(config_of(tmp_path))
    (denoise, denoise_back), (decode, decode_back) = shaped.denoiser_flops(), shaped.decoder_flops()
    assert shaped.frames == 1 and denoise_back > denoise / 2 > 0 < decode
    found = flops_of(shaped, Cost(100, 10, 30, 10, 30), ["toy"], ["toy", "toy_held_out"])
    assert found.denoiser == 100 * denoise + 10 * denoise_back
    assert found.decoder == 30 * decode + 10 * decode_back
    assert found.rewards == pytest.approx(1e9 * (10 * 2 * 0.018 + 20 * (0.018 + 0.015)))


def test_every_frame_of_a_video_is_decoded_and_judged(tmp_path: Path) -> None:
    build_tiny_video().save_pretrained(tmp_path)
    of_five, of_one = (
        ShapedModel.read(config_of(tmp_path, model={"id": str(tmp_path), "frames": frames})) for frames in (5, 1)
    )
    assert of_five.frames == 5
    assert of_five.decoder_flops()[0] == 5 * of_one.decoder_flops()[0] > 0
    assert reward_flops(["clip"], 5)[0] == 5 * reward_flops(["clip"])[0] > 0


def test_hours() -> None:
    hour = Parts(denoiser=989e12 * 3600, decoder=0, rewards=0)
    assert hours_on(hour, gpu_of("h100"), "auto") == pytest.approx(1 / 0.4)
    assert hours_on(hour, gpu_of("h100"), "float32") == pytest.approx(989 / 67 / 0.4)
    line = describe_hours(hour, gpu_of("H100"), "auto")
    assert "2.5 hours of one H100" in line and "40%" in line and "dense" in line and "an assumption" in line


def test_hours_on_a_gpu_that_computes_some_in_float32() -> None:
    parts = Parts(denoiser=65e12 * 3600, decoder=8.1e12 * 1800, rewards=8.1e12 * 1800)
    assert hours_on(parts, gpu_of("t4"), "auto") == pytest.approx(2 / 0.4)


def test_a_measured_figure_takes_the_place_of_the_assumption() -> None:
    measured = Gpu("X1", (9, 0), 100, 10, measured=0.5)
    parts = Parts(100e12 * 3600, 0, 0)
    assert hours_on(parts, measured, "auto") == 2
    line = describe_hours(parts, measured, "auto")
    assert "50%" in line and "as measured" in line and "assumption" not in line


def test_the_plan_of_a_training_names_all_parts_and_the_hours(tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path)
    plan = describe_plan(config_of(tmp_path), (), gpu=gpu_of("a100"))
    line = next(line for line in plan.splitlines() if "PFLOP" in line)
    total, *parts = (float(word) for word in line.split("about ")[1].replace(",", "").split() if word[0].isdigit())
    assert len(parts) == 3 and total == pytest.approx(sum(parts), rel=0.01)
    assert "hours of one A100" in plan
    assert "hours of one" not in describe_plan(config_of(tmp_path), ())


def test_an_evaluation_counts_the_rewards_that_it_asks_for(tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path)
    config = config_of(tmp_path, evaluation={"rewards": ["hpsv2", "clip"]})
    plan = describe_evaluation_plan(config, 4, 8, ())
    rewards = float(plan.split("rewards ")[1].split()[0])
    assert rewards == pytest.approx(evaluation_cost(config, 8).rewarded_images * (334.6 + 162.0) / 1e6, rel=0.01)
