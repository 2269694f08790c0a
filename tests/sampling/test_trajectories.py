"""Gradients on the way of a ragged batch, against the definition for one sample after the other; and what they cost."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from renege_ray.config.run import RunConfig, parse_config
from renege_ray.errors import UserError
from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import reward_of_prediction
from renege_ray.method.rollout import rollout
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.rewards.base import as_scorer
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import evaluate, generate_all, make_pairs
from renege_ray.sampling.trajectories import GradientSampler, Path, Trajectories, make_sampler
from renege_ray.sampling.workers import Workers
from renege_ray.training.gradient import GradientOfBatch
from tests.simple_rewards import Channel, NaNWhere
from tests.tiny import build_tiny_pipeline

STEPS, W = 6, 3.0
PROMPTS = ["a red fox", "a green hen", "two blue cows on a hill", "x"]
WHERE = [(1, 3), (5,), (), (0, 2, 5)]  # the third one is taken to the end alone
OWNERS = [0, 1, 1, 0]


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return StableDiffusion(build_tiny_pipeline(prediction_type="v_prediction"), "tiny")


def make_config(**optim: Any) -> RunConfig:
    sampling = {"num_inference_steps": STEPS, "guidance_scale": W, "gradient_steps": [0, STEPS]}
    return parse_config({"sampling": sampling, "optim": {"batch_size": 8} | optim})


def two_rewards(first: Any = None) -> WeightedReward:
    return WeightedReward({first or Channel(): 1.0, Channel("other", 1): 0.5})


def sampler(model: StableDiffusion, reward: WeightedReward | None = None, given: Any = "auto") -> GradientSampler:
    return make_sampler(make_config(), model, reward or two_rewards(), EncodedPrompts(model), given, 8, "size")


def paths(model: StableDiffusion, where: Sequence[tuple[int, ...]] = WHERE) -> list[Path]:
    prompts = [PROMPTS[k % len(PROMPTS)] for k in range(len(where))]
    owners = [OWNERS[k % len(OWNERS)] for k in range(len(where))]
    return [
        Path(prompt, noise(model.latent_shape, "x", k), owner, steps)
        for k, (prompt, owner, steps) in enumerate(zip(prompts, owners, where, strict=True))
    ]


def negatives(model: StableDiffusion) -> Tensor:
    return torch.cat([model.encode_prompts(["ugly"]), model.encode_prompts([""])])


def by_definition(model: StableDiffusion, samples: Sequence[Path]) -> Trajectories:
    """Eq. 7 with one graph from the reward to n, after a rollout to each of its steps; one sample after the other."""
    reward, schedule, all_n = two_rewards(), model.schedule(STEPS), negatives(model)
    sums = torch.zeros(all_n.shape, dtype=torch.float64)
    table = torch.full((len(samples), max(len(path.gradient_steps) for path in samples), 3), torch.nan).double()
    latents = []
    for row, path in enumerate(samples):
        c, n = model.encode_prompts([path.prompt]), all_n[path.negative][None]
        with torch.no_grad():
            latents.append(rollout(model.denoise, path.noise[None], c, n, schedule, Guidance(W)).latents)
        for place, i in enumerate(path.gradient_steps):
            with torch.no_grad():
                x = rollout(model.denoise, path.noise[None], c, n, schedule, Guidance(W), stop=i).latents
            leaf = n.clone().requires_grad_()
            seen: dict[str, Tensor] = {}

            def judge(images: Tensor, prompts: Sequence[str], seen: dict[str, Tensor] = seen) -> Tensor:
                seen |= reward.parts(images, prompts)
                return reward.combine(seen)

            arguments = (x, i, [path.prompt], c, leaf, schedule, Guidance(W))
            value = reward_of_prediction(model.denoise, model.decode, judge, *arguments)
            sums[path.negative] += torch.autograd.grad(value.sum(), leaf)[0][0].double()
            table[row, place] = torch.stack([value, *seen.values()]).detach().double()[:, 0]
    return Trajectories(sums, table, torch.cat(latents))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("given", ["auto", 1, 2])
def test_gradients_are_those_of_the_definition(model: StableDiffusion, given: Any) -> None:
    samples, expected = paths(model), by_definition(model, paths(model))
    found = sampler(model, given=given)(samples, negatives(model), to_the_end=True)
    assert relative(found.gradients, expected.gradients) < 1e-5
    torch.testing.assert_close(found.rewards, expected.rewards, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert found.latents is not None and expected.latents is not None
    assert relative(found.latents, expected.latents) < 1e-5


def test_samples_leave_after_their_last_gradient(model: StableDiffusion) -> None:
    samples = [path for path in paths(model) if path.gradient_steps]
    expected = by_definition(model, samples)
    found = sampler(model)(samples, negatives(model))
    assert found.latents is None
    assert relative(found.gradients, expected.gradients) < 1e-5
    torch.testing.assert_close(found.rewards, expected.rewards, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_what_is_not_finite_is_left_out_alone(model: StableDiffusion) -> None:
    samples = [path for path in paths(model) if path.gradient_steps]
    found = sampler(model, two_rewards(NaNWhere("hen")))(samples, negatives(model))
    good = sampler(model)([path for path in samples if "hen" not in path.prompt], negatives(model))
    assert relative(found.gradients, good.gradients) < 1e-5
    assert found.rewards[1].isnan().all() and found.rewards[0, :2].isfinite().all()


class Counted:
    """Counts rows and calls of the denoiser; `limit(rows, has a graph)` may say that there is not enough memory."""

    def __init__(self, model: StableDiffusion, patch: pytest.MonkeyPatch) -> None:
        self.calls = self.rows = self.most = 0
        denoise = StableDiffusion.denoise

        def counted(model: StableDiffusion, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
            self.calls, self.rows = self.calls + 1, self.rows + len(latents)
            return denoise(model, latents, timestep, prompt_embeds)

        patch.setattr(StableDiffusion, "denoise", counted)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_gradient_costs_two_forward_passes_beside_its_rollout(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    samples = paths(model, [(step,)] * 4)
    count = Counted(model, monkeypatch)
    sampler(model)(samples, negatives(model))
    assert count.rows == 4 * (2 * step + 2)
    assert count.calls == step + 2


def test_gradients_on_the_way_cost_no_forward_pass(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = paths(model, [(0, 2, 3, 5)] * 4)
    count = Counted(model, monkeypatch)
    sampler(model)(samples, negatives(model))
    assert count.rows == 4 * (2 * 5 + 2)
    count.rows = 0
    sampler(model)(samples, negatives(model), to_the_end=True)
    assert count.rows == 4 * 2 * STEPS, "a full generation takes as many without any gradient"


def test_a_rank_takes_few_calls_whatever_its_groups(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults on 8 ranks: 4 groups with steps of their own. One after the other they would take the sum."""
    sampling = {"num_inference_steps": 30, "guidance_scale": W, "gradient_steps": [0, 10]}
    config = parse_config({"sampling": sampling})
    assert (config.optim.batch_size, config.optim.timestep_groups) == (64, 4)
    gradient = GradientOfBatch(config, model, two_rewards(), PROMPTS, Workers(3, 8, lambda x: x), EncodedPrompts(model))
    count = Counted(model, monkeypatch)
    for step in range(3):
        count.calls = 0
        gradient(step, model.encode_prompts([""]))
        assert count.calls <= 31, "30 steps of the sampler are taken by 29 calls, and two more are for the gradients"


def out_of_memory_above(limit: int, with_graph: bool, patch: pytest.MonkeyPatch, method: str) -> Callable[[], int]:
    """Let a method of the model fail for more samples than `limit`; returns how often it has."""
    failures, original = 0, getattr(StableDiffusion, method)

    def limited(model: StableDiffusion, latents: Tensor, *others: Any) -> Tensor:
        nonlocal failures
        if torch.is_grad_enabled() == with_graph and len(latents) > limit:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        made: Tensor = original(model, latents, *others)
        return made

    patch.setattr(StableDiffusion, method, limited)
    return lambda: failures


@pytest.mark.parametrize(("method", "with_graph"), [("denoise", False), ("denoise", True), ("decode", True)])
def test_too_little_memory_anywhere_changes_no_result(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, method: str, with_graph: bool
) -> None:
    samples = paths(model, [(1, 3, 5)] * 8)
    plain = sampler(model)(samples, negatives(model))
    failures = out_of_memory_above(2, with_graph, monkeypatch, method)
    halving = sampler(model)
    found = halving(samples, negatives(model))
    assert 0 < failures() <= 3
    assert relative(found.gradients, plain.gradients) < 1e-5
    before = failures()
    halving(samples, negatives(model))
    assert failures() == before, "what fits is remembered"


def test_the_denoisers_batch_gives_way_to_a_decoder_that_cannot(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image at a time does not fit beside the graph of eight samples: it does beside that of two."""
    held, denoise, decode = 0, StableDiffusion.denoise, StableDiffusion.decode

    def noted(model: StableDiffusion, latents: Tensor, *others: Any) -> Tensor:
        nonlocal held
        held = len(latents) if torch.is_grad_enabled() else held
        return denoise(model, latents, *others)

    def limited(model: StableDiffusion, latents: Tensor) -> Tensor:
        if held + len(latents) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, latents)

    samples = paths(model, [(2,)] * 8)
    plain = sampler(model)(samples, negatives(model))
    monkeypatch.setattr(StableDiffusion, "denoise", noted)
    monkeypatch.setattr(StableDiffusion, "decode", limited)
    found = sampler(model)(samples, negatives(model))
    assert relative(found.gradients, plain.gradients) < 1e-5


def test_a_sample_that_does_not_fit_is_told(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, True, monkeypatch, "denoise")
    with pytest.raises(UserError, match="size: 1 does not fit into the memory"):
        sampler(model)(paths(model, [(1,)] * 2), negatives(model))


def test_images_are_made_in_batches_that_fit(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baselines, validations, the final test, and the pictures of `generate`."""
    sampling, encoded = make_config().sampling, EncodedPrompts(model)
    pairs, negative = make_pairs(PROMPTS, 8, 0), model.encode_prompts(["ugly"])
    scorers = [as_scorer(Channel())]
    plain = evaluate(model, {"null": negative}, pairs, scorers, sampling, keep_images=8, batch_size=8)
    failures = out_of_memory_above(2 * 3, False, monkeypatch, "denoise")  # both branches of three samples
    found = evaluate(model, {"null": negative}, pairs, scorers, sampling, keep_images=8, batch_size=8)
    assert failures() == 2
    torch.testing.assert_close(found.scores["null"], plain.scores["null"], rtol=1e-5, atol=1e-6)
    images = generate_all(model, negative, pairs, sampling, encoded, 8)
    torch.testing.assert_close(images, plain.images["null"], rtol=0, atol=1e-5)


def test_few_images_are_decoded_at_a_time_where_no_gradient_is_wanted(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, sizes, decode = torch.randn(7, *model.latent_shape), [], model.pipeline.vae.decode
    whole = model.decode(latents.requires_grad_()).detach()
    monkeypatch.setattr("renege_ray.models.frozen_pipeline.PIXELS_AT_ONCE", 3 * whole.shape[-1] * whole.shape[-2])
    monkeypatch.setattr(model.pipeline.vae, "decode", lambda x, **kw: sizes.append(len(x)) or decode(x, **kw))
    with torch.no_grad():
        torch.testing.assert_close(model.decode(latents), whole, rtol=0, atol=1e-5)
    assert sizes == [3, 3, 1]
