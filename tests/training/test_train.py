"""The use case without Ray, on a tiny random pipeline and simple rewards; several workers are threads."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from renege_ray.cluster.training.checkpoints import CheckpointStore
from renege_ray.config.run import RunConfig, parse_config
from renege_ray.errors import UserError
from renege_ray.method.embedding import NegativeEmbedding, as_stored
from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import reward_of_prediction
from renege_ray.method.rollout import rollout
from renege_ray.models.base import Activations
from renege_ray.models.families.registry import FAMILIES
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling import stored_prompts
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import Negative
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.training.early_stop import ValidationPoint, overoptimised_in_a_row, should_stop
from renege_ray.training.gradient import GradientOfBatch, drawn_prompts, gradient_step_indices, samples_of
from renege_ray.training.results import ModelFacts, write_results
from renege_ray.training.state import TornCheckpointError, TrainingState
from renege_ray.training.train import Progress, Prompts, Result, TrainingError, train_global
from tests.group import run_group
from tests.simple_rewards import Channel, NaNWhere
from tests.tiny import build_tiny_pixart, build_tiny_sdxl

PROMPTS = Prompts(
    train=[f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "dog", "cow")],
    validation=["a red fox", "a green fox", "a blue fox", "a grey fox"],
    held_out=["a red hen", "a green hen", "a blue hen"],
)


@pytest.fixture
def model(tiny_pipeline: Callable[..., Any]) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline(prediction_type="v_prediction"), "tiny")


def make_config(tmp_path: Path, **sections: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "sampling": {"num_inference_steps": 4, "guidance_scale": 3.0, "gradient_steps": [0, 3]},
        "optim": {"lr": 0.02, "steps": 6, "batch_size": 8, "timestep_groups": 2},
        "prompts": {"handwritten": ["blurry", "ugly"]},
        "rewards": {"train": {"channel": 1.0}, "held_out": ["other"]},
        "validation": {"every": 2, "num_prompts": 3, "seeds_per_prompt": 1, "batch_size": 4, "num_images": 2},
        "test": {"num_pairs": 4},
        "checkpoint": {"every": 1},
        "cluster": {},
    }
    for name, section in sections.items():
        base[name] |= section
    return parse_config({"output_dir": str(tmp_path), "seed": 3} | base)


def make_rewards(train: Any = None) -> Rewards:
    return Rewards(WeightedReward({train or Channel(): 1.0}), (Channel("other", 1),))


def train(config: RunConfig, model: StableDiffusion, **options: Any) -> tuple[Result, list[Progress]]:
    seen: list[Progress] = []
    rewards = options.pop("rewards", make_rewards())
    workers = options.pop("workers", None)
    result = train_global(config, model, rewards, PROMPTS, workers, report=seen.append, **options)
    return result, seen


def save(state: TrainingState, folder: Path) -> None:
    folder.mkdir(parents=True)
    state.write_files(folder)


def test_the_reward_rises_and_everything_is_reported(model: StableDiffusion, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    result, seen = train(config, model)
    assert result.status == "finished"
    assert [progress.step for progress in seen] == list(range(7))
    assert [progress.step for progress in seen if progress.evaluation] == [0, 2, 4, 6]
    first, last = seen[0].metrics, seen[-1].metrics
    assert last["eval/global/reward/mean"] > first["eval/global/reward/mean"]
    assert {"train/reward", "train/channel", "train/grad_norm", "train/drift", "train/lr"} <= seen[1].metrics.keys()
    assert {"eval/global/saturation/mean", "eval/global/sharpness/mean", "eval/global/other/mean"} <= first.keys()
    assert "eval/global/win_rate_vs_null/reward" in last and "eval/global/win_rate_vs_handwritten/other" in last
    assert "early stop: on" in seen[0].message and "blurry" in seen[0].message and "ugly" in seen[0].message
    assert result.test is not None and list(result.test.scores) == ["null", "handwritten", "global"]
    assert len(result.test.pairs) == 4
    assert all(not weight.requires_grad for weight in model.pipeline.unet.parameters())


def test_the_best_embedding_is_the_one_that_was_measured(model: StableDiffusion, tmp_path: Path) -> None:
    result, seen = train(make_config(tmp_path), model)
    means = {p.step: p.metrics["eval/global/reward/mean"] for p in seen if p.evaluation}
    best = result.state.best
    assert best.train_reward == max(means.values()) == means[best.step]
    assert torch.equal(best.prompt_embeds, best.prompt_embeds.half().float())
    at_best = next(p.state for p in seen if p.step == best.step and p.state)
    assert torch.equal(best.prompt_embeds, as_stored(at_best.ascent["embedding"]))


def test_the_handwritten_negative_is_the_best_candidate(model: StableDiffusion, tmp_path: Path) -> None:
    result, _ = train(make_config(tmp_path, optim={"steps": 1}), model)
    scores = result.state.candidate_rewards
    assert set(scores) == {"blurry", "ugly"}
    assert scores[result.state.handwritten] == max(scores.values())


def test_every_prompt_is_encoded_once_before_the_first_image(
    model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked, negated = make_config(tmp_path), list[str](), list[str]()
    monkeypatch.setattr(stored_prompts, "_latest", {})

    def counted(encode: Callable[[Sequence[str]], Tensor], texts: list[str], some: Sequence[str]) -> Tensor:
        texts.extend(some)
        return encode(some)

    monkeypatch.setattr(model, "encode_prompts", partial(counted, model.encode_prompts, asked))
    monkeypatch.setattr(model, "encode_negatives", partial(counted, model.encode_negatives, negated))
    when_images_began: list[int] = []
    monkeypatch.setattr(
        model, "schedule", lambda steps: when_images_began.append(len(asked + negated)) or schedule(steps)
    )
    schedule = type(model).schedule.__get__(model)
    result, _ = train(config, model)
    drawn = {sample.prompt for step in range(6) for group in samples_of(config, PROMPTS.train, step, Workers())
             for sample in group}  # fmt: skip
    assert {*drawn_prompts(config, PROMPTS.train, Workers())} == drawn
    shares = [{*drawn_prompts(config, PROMPTS.train, Workers(rank, 3))} for rank in range(3)]
    assert set.union(*shares) == drawn
    judged = {pair.prompt for pair in result.test.pairs} | {*PROMPTS.validation[:3]} if result.test else set()
    assert sorted(asked) == sorted({*drawn, *judged})
    assert sorted(negated) == ["", "", "blurry", "ugly"], "the null embedding is one more"
    assert when_images_began and set(when_images_began) == {len(asked + negated)}
    asked.clear()
    train(config, model)
    assert not asked, "the next training in this process wants the same"


@pytest.mark.parametrize(("per_rollout", "steps", "worlds"), [(1, 20, (1, 2, 4)), (2, 6, (1, 2))])
@pytest.mark.slow
def test_world_size_does_not_matter(
    model: StableDiffusion, tmp_path: Path, per_rollout: int, steps: int, worlds: tuple[int, ...]
) -> None:
    config = make_config(
        tmp_path,
        optim={"steps": steps, "gradients_per_rollout": per_rollout},
        validation={"every": steps, "num_prompts": 2, "num_images": 1},
        test={"num_pairs": 2},
        checkpoint={"every": 20},
    )
    embeddings = {}
    for world_size in worlds:
        results = run_group(world_size, lambda workers: train(config, model, workers=workers)[0])
        ranks = [result.state.ascent["embedding"] for result in results]
        assert all(torch.equal(ranks[0], other) for other in ranks), "the ranks have drifted apart"
        assert all(torch.equal(results[0].test.scores["global"]["reward"], r.test.scores["global"]["reward"])
                   for r in results if r.test and results[0].test)  # fmt: skip
        embeddings[world_size] = ranks[0]
    for world_size in worlds[1:]:
        difference = (embeddings[world_size] - embeddings[1]).norm() / embeddings[1].norm()
        assert difference < 1e-5


@pytest.mark.slow
def test_micro_batches_do_not_matter(model: StableDiffusion, tmp_path: Path) -> None:
    whole, _ = train(make_config(tmp_path), model)
    split, _ = train(make_config(tmp_path, optim={"micro_batch_size": 3}), model)
    torch.testing.assert_close(split.state.ascent["embedding"], whole.state.ascent["embedding"], rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_reward(model: StableDiffusion, tmp_path: Path) -> None:
    """Against the definition: every sample alone, one graph, Eq. 7."""
    config = make_config(tmp_path, optim={"gradients_per_rollout": 2})
    reward = WeightedReward({Channel(): 1.0, Channel("other", 1): 0.5})
    encoded = EncodedPrompts(model)
    negative = model.encode_prompts([""])
    found = GradientOfBatch(config, model, reward, PROMPTS.train, Workers(), encoded)(5, negative)

    schedule, n = model.schedule(4), negative.clone().requires_grad_()
    rewards = []
    for sample in (sample for group in samples_of(config, PROMPTS.train, 5, Workers()) for sample in group):
        c = model.encode_prompts([sample.prompt])
        x_T = noise((1, *model.latent_shape), config.seed, "noise", 5, sample.index)
        for step in sample.gradient_steps:
            with torch.no_grad():
                x_t = rollout(model.denoise, x_T, c, negative, schedule, Guidance(3.0), stop=step).latents
            rewards.append(
                reward_of_prediction(
                    model.denoise, model.decode, reward, x_t, step, [sample.prompt], c, n, schedule, Guidance(3.0)
                )
            )
    expected = torch.cat(rewards)
    (gradient,) = torch.autograd.grad(expected.mean(), n)
    torch.testing.assert_close(found.rewards["reward"].float(), expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-7)
    assert found.valid.all() and found.valid.shape == (16,)


def test_steps_are_stratified_over_the_range(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        sampling={"num_inference_steps": 20, "gradient_steps": [0, 8]},
        optim={"batch_size": 8, "timestep_groups": 4, "gradients_per_rollout": 2},
    )
    counts = dict.fromkeys(range(20), 0)
    for step in range(200):
        drawn = [gradient_step_indices(config, step, group) for group in range(4)]
        assert all(a < b for a, b in drawn)
        flat = sorted(index for pair in drawn for index in pair)
        assert flat == list(range(12, 20)), "eight strata of one step each"
        for index in flat:
            counts[index] += 1
    one = make_config(
        tmp_path, sampling={"num_inference_steps": 20, "gradient_steps": [2, 7]}, optim={"timestep_groups": 2}
    )
    seen = [gradient_step_indices(one, step, group)[0] for step in range(500) for group in range(2)]
    assert set(seen) == {13, 14, 15, 16, 17}
    assert all(abs(seen.count(index) - 200) < 60 for index in set(seen))


@pytest.mark.slow
def test_resume_is_exact_after_every_checkpoint(model: StableDiffusion, tmp_path: Path) -> None:
    config = make_config(tmp_path, optim={"ema_decay": 0.5})
    unbroken, seen = train(config, model)
    for progress in seen:
        assert progress.state is not None
        folder = tmp_path / f"step-{progress.step}"
        save(progress.state, folder)
        resumed, _ = train(config, model, resume=TrainingState.load(folder))
        for name, tensor in unbroken.state.ascent.items():
            assert torch.equal(resumed.state.ascent[name], tensor), (progress.step, name)
        assert torch.equal(resumed.best, unbroken.best)
        assert resumed.state.history == unbroken.state.history
        assert resumed.test is not None and unbroken.test is not None
        for name, scores in unbroken.test.scores["global"].items():
            assert torch.equal(resumed.test.scores["global"][name], scores)


def test_a_checkpoint_of_another_configuration_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    _, seen = train(make_config(tmp_path, optim={"steps": 1}), model)
    with pytest.raises(UserError, match="another configuration"):
        train(make_config(tmp_path, optim={"steps": 2}), model, resume=seen[0].state)


@pytest.mark.slow
def test_a_request_to_stop_leaves_a_checkpoint_of_the_last_whole_step(model: StableDiffusion, tmp_path: Path) -> None:
    config = make_config(tmp_path, checkpoint={"every": 100})
    polls: list[int] = []  # of the steps of the sampler, the update that each belongs to
    done = 0

    def note(progress: Progress) -> None:
        nonlocal done
        done = progress.step

    def never() -> bool:
        polls.append(done)
        return False

    unbroken = train_global(config, model, make_rewards(), PROMPTS, report=note, asked_to_stop=never)
    for after in (0, 1, len(polls) // 2, len(polls) - 1):
        left = iter(range(len(polls) + 1))
        stopped, seen = train(config, model, asked_to_stop=lambda after=after, left=left: next(left) >= after)
        assert next(left) == after + 1, "nothing is computed after the request"
        assert stopped.status == "interrupted" and stopped.test is None
        kept = [progress.step for progress in seen if progress.state is not None]
        assert kept == sorted(set(kept)) and kept[-1] == polls[after]
        resumed, _ = train(config, model, resume=seen[-1].state)
        assert torch.equal(resumed.last, unbroken.last)


def test_samples_without_a_finite_reward_are_left_out(model: StableDiffusion, tmp_path: Path) -> None:
    config = make_config(tmp_path, optim={"steps": 1})
    encoded, negative = EncodedPrompts(model), model.encode_prompts([""])
    spoiled = GradientOfBatch(config, model, WeightedReward({NaNWhere("cat"): 1.0}), PROMPTS.train, Workers(), encoded)
    clean = GradientOfBatch(config, model, WeightedReward({Channel(): 1.0}), PROMPTS.train, Workers(), encoded)
    samples = [sample for group in samples_of(config, PROMPTS.train, 0, Workers()) for sample in group]
    bad = torch.tensor(["cat" in sample.prompt for sample in samples])
    assert bad.any() and not bad.all()
    found = spoiled(0, negative)
    assert torch.equal(~found.valid, bad)
    assert found.gradient.isfinite().all()
    reference = clean(0, negative)
    assert found.means()["reward"] == pytest.approx(float(reference.rewards["reward"][~bad].mean()), rel=1e-6)


def test_ten_in_a_row_without_a_finite_reward_end_training(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 1: 10 samples in a row"):
        train(make_config(tmp_path), model, rewards=make_rewards(NaNWhere("")))


def test_a_given_size_that_does_not_fit_is_told(model: StableDiffusion, tmp_path: Path) -> None:
    class TooMuch(Channel):
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            raise torch.cuda.OutOfMemoryError("out of memory")

    fixed = make_config(tmp_path, optim={"batch_size": 16, "micro_batch_size": 8})
    gradient = GradientOfBatch(
        fixed, model, WeightedReward({TooMuch(): 1.0}), PROMPTS.train, Workers(), EncodedPrompts(model)
    )
    with pytest.raises(UserError, match="micro_batch_size: 8"):
        gradient(0, model.encode_prompts([""]))


def points(*rewards: tuple[float, float]) -> list[ValidationPoint]:
    return [ValidationPoint(step, *pair) for step, pair in enumerate(rewards)]


def test_early_stop_rule() -> None:
    exploited = points((1, 1), (2, 2), (3, 1.9), (4, 1.5), (5, 1.2))
    assert overoptimised_in_a_row(exploited) == 3
    assert should_stop(exploited, 3) and not should_stop(exploited, 4) and not should_stop(exploited, 0)
    assert overoptimised_in_a_row(points((1, 1), (2, 2), (3, 1.9), (4, 2.1))) == 0, "the held-out reward has recovered"
    assert overoptimised_in_a_row(points((2, 2), (1, 1))) == 0, "both fall: a bad step, not exploitation"
    assert overoptimised_in_a_row(points((1, math.nan), (2, math.nan))) == 0, "nothing is held out"


@pytest.mark.slow
def test_training_stops_early_and_resumes_as_stopped(model: StableDiffusion, tmp_path: Path) -> None:
    class Opposite(Channel):
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return -super().__call__(images, prompts)

    rewards = Rewards(WeightedReward({Channel(): 1.0}), (Opposite("other"),))
    config = make_config(tmp_path, optim={"steps": 40}, validation={"every": 1, "patience": 2})
    result, seen = train(config, model, rewards=rewards)
    assert result.status == "stopped early" and result.state.step < 40
    assert f"early stop at step {result.state.step}" in seen[-1].message
    again, later = train(config, model, rewards=rewards, resume=seen[-1].state)
    assert again.status == "stopped early" and not later and torch.equal(again.last, result.last)
    off = make_config(tmp_path, optim={"steps": 5}, validation={"every": 1, "patience": 0})
    result, seen = train(off, model, rewards=rewards)
    assert result.status == "finished" and "early stop: off" in seen[0].message


def test_initial_embeddings(model: StableDiffusion, tmp_path: Path) -> None:
    handwritten, seen = train(make_config(tmp_path, optim={"steps": 1, "init": "handwritten"}), model)
    assert torch.equal(seen[0].state.ascent["initial"], model.encode_prompts([handwritten.state.handwritten]))
    given = torch.randn(1, *model.embedding_shape)
    _, seen = train(
        make_config(tmp_path, optim={"steps": 1, "init": "file.safetensors"}), model, initial=Negative(embedding=given)
    )
    assert torch.equal(seen[0].state.ascent["initial"], given)


@pytest.mark.parametrize("build", [build_tiny_sdxl, build_tiny_pixart])
@pytest.mark.slow
def test_embeddings_of_several_tensors(build: Callable[[], Any], tmp_path: Path) -> None:
    """From the start to files, and from a file on; the use case does not know what is in an embedding."""
    pipeline = build()
    model = FAMILIES[type(pipeline).__name__](pipeline, "tiny")
    config = make_config(tmp_path, optim={"steps": 3})
    result, seen = train(config, model)
    assert result.status == "finished" and result.last.shape == (1, *model.embedding_shape)
    first = seen[0].state.ascent["initial"]
    assert torch.equal(first, model.starting_point(model.encode_prompts([""])))
    facts = ModelFacts(
        "tiny", model.text_encoder_name, model.text_encoder_hash, "channel", model.embedding_layout, rewards=[]
    )
    artifacts = write_results(config, facts, result.state, result.test)
    stored = NegativeEmbedding.load(artifacts.embedding)
    stored.check_fits(model.embedding_layout.shapes, model.text_encoder_hash, model.text_encoder_name)
    packed = model.embedding_layout.pack(stored.tensors)
    assert torch.equal(packed, result.best) and (packed - first).abs().max() > 1e-3
    resumed, _ = train(config, model, resume=seen[1].state)
    assert torch.equal(resumed.last, result.last)
    _, seen = train(config, model, initial=Negative(embedding=packed))
    assert torch.equal(seen[0].state.ascent["initial"], packed)


@pytest.mark.slow
def test_little_memory_changes_no_result(
    model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ample, _ = train(make_config(tmp_path), model)
    # GiB at 8 latents a side, twice as many in float32: 16 GB hold one sample, if activations are computed again.
    monkeypatch.setattr(type(model), "MEMORY", (Activations(5.0, 4.0), Activations(3.0, 2.0), 8))
    tight = make_config(tmp_path).model_copy(update={"memory": "16gb"})
    result, _ = train(tight, model)
    assert result.state.micro_batch_size == 1 < ample.state.micro_batch_size
    assert model.pipeline.unet.is_gradient_checkpointing and not model.pipeline.unet.training
    torch.testing.assert_close(result.last, ample.last, rtol=1e-3, atol=1e-4)


def test_torn_checkpoints_are_recognised(model: StableDiffusion, tmp_path: Path) -> None:
    _, seen = train(make_config(tmp_path, optim={"steps": 3}), model)
    folders = [tmp_path / "attempt-001" / f"step-{p.step:06d}" for p in seen]
    for progress, folder in zip(seen, folders, strict=True):
        save(progress.state, folder)
    tensors = folders[3] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    changed = bytearray((folders[2] / "tensors.safetensors").read_bytes())
    changed[-1] ^= 1
    (folders[2] / "tensors.safetensors").write_bytes(changed)
    (folders[1] / "state.json").unlink()
    for folder in folders[1:]:
        with pytest.raises(TornCheckpointError):
            TrainingState.load(folder)
    found = CheckpointStore(str(tmp_path)).newest_intact()
    assert found is not None and found[0] == "attempt-001/step-000000" and found[1].step == 0
    record = json.loads((folders[0] / "state.json").read_text())
    (folders[0] / "state.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(UserError, match="format 1, and this version reads format 2"):
        TrainingState.load(folders[0])


def test_a_checkpoint_holds_all_that_it_was_made_of(model: StableDiffusion, tmp_path: Path) -> None:
    result, _ = train(make_config(tmp_path, optim={"steps": 2, "ema_decay": 0.5}), model)
    save(result.state, tmp_path / "final")
    loaded = TrainingState.load(tmp_path / "final")
    assert torch.equal(loaded.last, result.state.last) and not torch.equal(loaded.last, loaded.ascent["embedding"])
    assert loaded.test is not None and result.test is not None
    for back, evaluation in ((loaded.baselines, result.state.baselines), (loaded.test, result.test)):
        assert back.pairs == evaluation.pairs and list(back.images) == list(evaluation.images)
        for method, scores in evaluation.scores.items():
            assert list(back.scores[method]) == list(scores)
            for name, values in scores.items():
                assert torch.equal(back.scores[method][name].nan_to_num(-1), values.nan_to_num(-1))
