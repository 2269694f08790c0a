from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from renege_ray.config.run import SamplingConfig
from renege_ray.evaluation.analyses.efficiency import (
    IMAGES_PER_PROBE,
    NUM_PROBES,
    Efficiency,
    attention_projections,
    draw,
    lora_factors,
    measure_efficiency,
)
from renege_ray.method import rollout
from renege_ray.method.guidance import Guidance
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, initial_noise

SAMPLING = SamplingConfig(num_inference_steps=1, guidance_scale=3.0, gradient_steps=(0, 1))
PAIRS = [Pair("a fox", 1), Pair("b", 2), Pair("a fox", 3), Pair("", 4)]
RANK = 2


def exact_squares(model: StableDiffusion, n: torch.Tensor) -> dict[str, float]:
    """|J|_F^2, mean over PAIRS, by one backward pass for each of the latents' numbers, with a real LoRA in place."""
    factors = lora_factors(attention_projections(model.denoiser), RANK, seed=0)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model.denoiser.add_adapter(config, "probe")
    parameters = dict(model.denoiser.named_parameters())
    with torch.no_grad():
        for name, a in factors.items():
            parameters[name.removesuffix("weight") + "lora_A.probe.weight"].copy_(a)
    leaf = n.clone()
    leaves = {"n": leaf, **parameters}
    for tensor in leaves.values():
        tensor.requires_grad_()
    totals = dict.fromkeys(("n", "A", "B", "weights"), 0.0)
    for pair in PAIRS:
        c = model.encode_prompts([pair.prompt])
        x_T = initial_noise(pair.seed, model.latent_shape)
        z = rollout(model.denoise, x_T, c, leaf, model.schedule(1), Guidance(SAMPLING.guidance_scale)).latents
        for number in z.flatten():
            row = torch.autograd.grad(number, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for name, product in zip(leaves, row, strict=True):
                kind = {"n": "n"}.get(name) or ("A" if "lora_A" in name else "B" if "lora_B" in name else "weights")
                totals[kind] += float(product.double().square().sum()) / len(PAIRS)
    return totals


@pytest.mark.slow
def test_the_estimates_are_within_five_percent_of_the_exact_values(
    tiny_pipeline: Callable[..., StableDiffusionPipeline],
) -> None:
    """With the default number of probes, all of the same images, on a model of 64 latent numbers, in one step."""
    pipeline = tiny_pipeline(unet_channels=(4,), width=8, unet={"sample_size": 4}, prediction_type="v_prediction")
    model = StableDiffusion(pipeline, "tiny")
    n = model.encode_prompts(["ugly"])
    assert len(PAIRS) == IMAGES_PER_PROBE
    probed = [PAIRS] * NUM_PROBES
    encoded = EncodedPrompts(model)
    found = measure_efficiency(model, n, probed, encoded, SAMPLING, seed=0, lora_ranks=[RANK])
    assert not any(weight.requires_grad for weight in model.denoiser.parameters())
    sizes = {"n": n.numel(), "all weights": sum(weight.numel() for weight in model.denoiser.parameters())}
    exact = exact_squares(model, n)
    lora = found[f"LoRA, rank {RANK}"]
    assert exact["A"] == 0  # B = 0 at the start
    for it, square in ((found["n"], exact["n"]), (lora, exact["B"]), (found["all weights"], exact["weights"])):
        assert it.squared_norm == pytest.approx(square, rel=0.05)
        assert abs(it.value - square / it.size) < 4 * it.standard_error < 0.2 * it.value
    assert {name: found[name].size for name in sizes} == sizes
    assert lora.size == sum(p.numel() for name, p in model.denoiser.named_parameters() if "lora" in name)


def test_an_embedding_of_zeros_and_a_single_probe_can_be_drawn() -> None:
    found = {"n": Efficiency(10, 0.0, (2.0,)), "all weights": Efficiency(20, 1.0, (3.0,))}
    assert min(draw(found, "null").size) > 100


def test_figures_of_known_squares() -> None:
    p, q = Efficiency(10, 2.0, (1.0, 2.0, 6.0)), Efficiency(5, 1.0, (2.0, 4.0, 12.0))
    assert p.squared_norm == 3.0 and p.value == pytest.approx(0.3)
    assert p.standard_error == pytest.approx((7 / 3) ** 0.5 / 10)  # variance 7, three probes
    assert p.norm_per_number == pytest.approx(3**0.5 / 10) and p.at_own_scale == pytest.approx(1.2)
    assert p.ratio_to(q) == (pytest.approx(0.25), pytest.approx(0.0, abs=1e-12))  # proportional: the ratio is certain
    assert Efficiency(1, 1.0, (1.0,)).standard_error != Efficiency(1, 1.0, (1.0,)).standard_error  # NaN
