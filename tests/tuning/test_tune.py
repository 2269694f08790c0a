"""Per-prompt tuning without Ray, against a plain implementation of Algorithm 1 for one prompt."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from renege_ray.config.run import RunConfig, parse_config
from renege_ray.errors import UserError
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.prompts.sources import pair_seed, prompt_id
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import stratified_step
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.tune import PromptTuner, TunedPrompt, tuning_seeds
from tests.simple_rewards import Channel, NaNWhere, RaisesFor
from tests.tiny import build_tiny_pipeline

PROMPTS = ["a red fox", "a green hen", "two blue cows on a hill", "a cat", "x"]
STEPS, GUIDANCE_SCALE = 5, 3.0


class Fickle(Channel):
    """A reward with a maximum that prompts overshoot after differently many steps, some at once."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return -(super().__call__(images, prompts) / lengths - 0.07).abs()


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return StableDiffusion(build_tiny_pipeline(prediction_type="v_prediction"), "tiny")


def make_config(**tuning: Any) -> RunConfig:
    settings = {"lr": 0.3, "steps": 5, "patience": 2, "slots": 3, "held_out_patience": 0, "betas": [0.8, 0.9]}
    return parse_config(
        {
            "seed": 3,
            "sampling": {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "gradient_steps": [0, 4]},
            "tuning": settings | tuning,
        }
    )


def tune(
    model: StableDiffusion, prompts: Sequence[str], reward: Any = None, held_out: Sequence[Any] = (), **tuning: Any
) -> dict[str, TunedPrompt]:
    rewards = Rewards(WeightedReward({reward or Channel(): 1.0}), tuple(held_out))
    encoded = EncodedPrompts(model)
    tuner = PromptTuner(make_config(**tuning), model, rewards, encoded(["ugly"]), encoded)
    done = list(tuner.tune(prompts))
    assert sorted(tuned.prompt for tuned in done) == sorted(prompts)
    return {tuned.prompt: tuned for tuned in done}


def algorithm_1(model: StableDiffusion, prompt: str, reward: Any, config: RunConfig) -> tuple[Tensor, list[float]]:
    """Algorithm 1 for one prompt as one would write it down: torch's AdamW, diffusers' scheduler, one image at a
    time. Returns the best candidate and all rewards.
    """
    tuning = config.tuning
    pipeline = model.pipeline
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    c = model.encode_prompts([prompt])
    start = model.encode_prompts(["ugly"]).half().float()
    n = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([n], lr=tuning.lr, betas=tuning.betas, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, tuning.steps)

    def guided(latents: Tensor, t: Tensor, negative: Tensor) -> Tensor:
        e_n = pipeline.unet(latents, t, encoder_hidden_states=negative).sample
        e_c = pipeline.unet(latents, t, encoder_hidden_states=c).sample
        return e_n + GUIDANCE_SCALE * (e_c - e_n)

    def image(latents: Tensor) -> Tensor:
        return model.decode(latents)

    best, best_at, rewards = start, 0, []
    for k in range(tuning.steps + 1):
        candidate = n.detach().half().float()
        gradients, measured = [], []
        for j in range(tuning.tune_seeds):
            seed = pair_seed(config.seed, prompt_id(prompt), j)
            at = stratified_step(
                config.sampling, (j + k) % tuning.tune_seeds, tuning.tune_seeds, seed, "timestep", k, 0
            )
            x = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(seed))
            for i, t in enumerate(scheduler.timesteps):
                if i == at:
                    leaf = candidate.clone().requires_grad_()
                    x0 = scheduler.step(guided(x, t, leaf), t, x).pred_original_sample
                    gradients += torch.autograd.grad(reward(image(x0), [prompt]).sum(), leaf)
                with torch.no_grad():
                    x = scheduler.step(guided(x, t, candidate), t, x).prev_sample
            with torch.no_grad():
                measured.append(float(reward(image(x), [prompt])))
        rewards.append(sum(measured) / len(measured))
        if k == 0 or rewards[-1] > rewards[best_at]:
            best, best_at = candidate, k
        if k - best_at >= tuning.patience:
            break
        g = -sum(gradients) / len(gradients) + 2 * tuning.drift_penalty * (n.detach() - start) / n.numel()
        if tuning.max_grad_norm:
            g = g * min(1.0, tuning.max_grad_norm / float(g.norm()))
        n.grad = g
        optimizer.step()
        decay.step()
    return best, rewards


def close(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "tuning",
    [
        {},
        {"tune_seeds": 1, "max_grad_norm": 0.01, "drift_penalty": 0.5, "patience": 1},
        {"tune_seeds": 3, "slots": 2, "steps": 3},
    ],
)
@pytest.mark.slow
def test_a_batch_of_prompts_is_algorithm_1_for_each(model: StableDiffusion, tuning: dict[str, Any]) -> None:
    reward = Fickle()
    done = tune(model, PROMPTS, reward, **tuning)
    lengths = set()
    for prompt, tuned in done.items():
        best, rewards = algorithm_1(model, prompt, reward, make_config(**tuning))
        assert tuned.rewards == pytest.approx(rewards, rel=1e-4, abs=1e-5)
        assert tuned.best_step == rewards.index(max(rewards)) and tuned.steps == len(rewards) - 1
        assert close(tuned.embedding, best) < 1e-4
        assert tuned.rewards[tuned.best_step] >= tuned.rewards[0]
        lengths.add(len(rewards))
    assert len(lengths) > 1 or tuning, "all prompts took equally long: slots were never given away in between"


@pytest.mark.slow
def test_prompts_do_not_touch_each_other(model: StableDiffusion) -> None:
    """Together, one by one, in another order and with other numbers of slots: the same."""
    together = tune(model, PROMPTS, Fickle(), slots=5, gradients_per_rollout=2)
    others = [
        {prompt: tune(model, [prompt], Fickle(), gradients_per_rollout=2)[prompt] for prompt in PROMPTS},
        tune(model, PROMPTS[::-1], Fickle(), slots=2, gradients_per_rollout=2),
        tune(model, PROMPTS, Fickle(), slots=4, micro_batch_size=3, gradients_per_rollout=2),
    ]
    for other in others:
        for prompt, tuned in together.items():
            assert other[prompt].rewards == pytest.approx(tuned.rewards, abs=1e-4)
            assert (other[prompt].best_step, other[prompt].steps) == (tuned.best_step, tuned.steps)
            assert close(other[prompt].embedding, tuned.embedding) < 1e-4


@pytest.mark.slow
def test_the_same_batch_gives_the_same_bits(model: StableDiffusion) -> None:
    first, second = tune(model, PROMPTS), tune(model, PROMPTS)
    for prompt, tuned in first.items():
        assert torch.equal(tuned.embedding, second[prompt].embedding)
        assert tuned.rewards == second[prompt].rewards


def test_what_is_returned_is_what_was_measured(model: StableDiffusion) -> None:
    """The embedding is one that float16 can hold, and a diffusers pipeline gets the recorded rewards from it."""
    reward = Channel()
    config = make_config()
    for prompt, tuned in tune(model, PROMPTS[:3], reward).items():
        assert torch.equal(tuned.embedding, tuned.embedding.half().float())
        assert tuned.best_step > 0
        for name, negative, recorded in (
            ("global", model.encode_prompts(["ugly"]).half().float(), tuned.rewards[0]),
            ("prompt", tuned.embedding, tuned.rewards[tuned.best_step]),
        ):
            assert recorded == pytest.approx(float(reward(tuned.images[name], [prompt] * 2).mean()), abs=1e-6)
            made = [
                model.pipeline(
                    prompt, negative_prompt_embeds=negative, num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE,
                    generator=torch.Generator().manual_seed(seed), height=16, width=16, output_type="pt",
                ).images
                for seed in tuning_seeds(config, prompt)[0]
            ]  # fmt: skip
            torch.testing.assert_close(tuned.images[name], torch.cat(made), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_prompt_that_raises_spoils_no_other(model: StableDiffusion) -> None:
    good = tune(model, [p for p in PROMPTS if "hen" not in p])
    mixed = tune(model, PROMPTS, RaisesFor("hen"))
    failed = mixed.pop("a green hen")
    assert failed.error == "RuntimeError: no hen, please" and failed.images == {}
    assert torch.equal(failed.embedding, model.encode_prompts(["ugly"]).half().float())
    for prompt, tuned in mixed.items():
        assert not tuned.error and tuned.rewards == pytest.approx(good[prompt].rewards, abs=1e-4)


def test_a_reward_that_is_not_finite_fails_its_prompt_alone(model: StableDiffusion) -> None:
    done = tune(model, PROMPTS, NaNWhere("cat"))
    assert "the reward of the initial embedding is nan" in done.pop("a cat").error
    assert not any(tuned.error for tuned in done.values())


def test_bad_settings_are_no_prompts_fault(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match="please"):
        tune(model, PROMPTS, RaisesFor("hen", UserError))
    with pytest.raises(UserError, match=r"tuning.micro_batch_size: 2 does not fit"):
        tune(model, PROMPTS, RaisesFor("hen", torch.cuda.OutOfMemoryError), micro_batch_size=2)


def test_a_falling_held_out_reward_ends_the_search(model: StableDiffusion) -> None:
    """The held-out reward is the opposite of the training reward: it falls while that one rises."""

    class Opposite(Channel):
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return -super().__call__(images, prompts)

    (unwatched,) = tune(model, PROMPTS[:1], held_out=[Opposite("other")]).values()
    assert unwatched.steps == 5 and unwatched.rewards[1] > unwatched.rewards[0]
    (watched,) = tune(model, PROMPTS[:1], held_out=[Opposite("other")], held_out_patience=2).values()
    assert watched.steps == 2 and watched.stopped_early
    assert watched.rewards == pytest.approx(unwatched.rewards[:3], abs=1e-5)


@pytest.mark.slow
def test_slots_are_filled_again_at_once(model: StableDiffusion) -> None:
    encoded = EncodedPrompts(model)
    rewards = Rewards(WeightedReward({Fickle(): 1.0}))
    tuner = PromptTuner(make_config(), model, rewards, encoded([""]), encoded)
    seen: list[list[str]] = []
    prompts = [f"{prompt} {i}" for i in range(6) for prompt in PROMPTS]
    list(tuner.tune(prompts, lambda present: seen.append(list(present)) is None))
    full = [present for present in seen if len(present) == 3]
    assert len(full) >= 0.9 * len(seen)
    assert all(len(present) == 3 for present in seen[: len(full)]), "a slot was empty while prompts were waiting"
    assert tuner.slot_steps_used == sum(map(len, seen)) and tuner.slot_steps == 3 * len(seen)


def test_a_search_can_be_given_up(model: StableDiffusion) -> None:
    encoded = EncodedPrompts(model)
    tuner = PromptTuner(make_config(), model, Rewards(WeightedReward({Channel(): 1.0})), encoded([""]), encoded)
    assert list(tuner.tune(PROMPTS, lambda present: tuner.slot_steps < 9)) == [], "all need six steps"
    assert tuner.slot_steps == 9


def test_no_prompts_are_no_work(model: StableDiffusion) -> None:
    assert tune(model, []) == {}


def test_seeds_are_functions_of_the_prompt() -> None:
    tuned, fresh = tuning_seeds(make_config(tune_seeds=3, eval_seeds=2), "a  fox")
    assert len({*tuned, *fresh}) == 5
    assert tuning_seeds(make_config(tune_seeds=3, eval_seeds=2), "a fox") == (tuned, fresh)
    assert tuning_seeds(make_config(tune_seeds=2, eval_seeds=3), "a fox") == (tuned[:2], (tuned[2], *fresh))
