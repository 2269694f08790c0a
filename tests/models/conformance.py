"""What every family of models has to do, on a tiny model of its architecture that is saved and loaded by path.

A family's tests subclass `Conformance` and say how its tiny model is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from renege_ray import NegativeEmbedding
from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method import Ascent, AscentSettings, EmbeddingMetadata, predict_x0, reward_of_prediction
from renege_ray.method.embedding import ATTENTION_MASK, POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.base import TextToImage
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import identify_text_encoder, load_model
from tests.models.compiled_updates import check_two_graphs_of_each_network
from tests.models.tiny_images import PROMPTS, STEPS, W, hash_of, images_of, learned_entries, noise, redness, sampled


class Conformance(ABC):
    # The pipeline's own arguments for an image of the model's own size, and what it is compared at.
    CALL: ClassVar[dict[str, Any]] = {}
    # The type in which the pipeline takes a mask, in bfloat16.
    MASK: ClassVar[torch.dtype] = torch.int64
    # What else a configuration says of the model.
    OPTIONS: ClassVar[dict[str, Any]] = {}

    @staticmethod
    @abstractmethod
    def build(seed: int = 0) -> Any:
        """The tiny pipeline, with a scheduler as the family's models have it."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "tiny"
        self.build().save_pretrained(folder)
        return folder

    @pytest.fixture(scope="class")
    def model(self, folder: Path) -> FrozenPipeline:
        return self.load(folder)

    @pytest.fixture(scope="class")
    def pipeline(self, folder: Path) -> Any:
        """The family's own pipeline with diffusers' DDIM, or with its own flow-matching scheduler."""
        return self.plain_pipeline(folder)

    @classmethod
    def load(cls, folder: Path, **options: Any) -> FrozenPipeline:
        model = load_model(ModelConfig(id=str(folder), **(cls.OPTIONS | options)), "cpu")
        assert isinstance(model, FrozenPipeline)
        return model

    @staticmethod
    def plain_pipeline(folder: Path, **options: Any) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(folder, **options)
        config = pipeline.scheduler.config  # of flow matching, its own is compared with
        if "beta_schedule" in config and config.get("prediction_type") != "flow_prediction":
            pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def call(self, pipeline: Any, model: TextToImage, prompts: Sequence[str], **arguments: Any) -> Tensor:
        """Images by diffusers, with the same initial noise. The prompts are left out where they are encoded."""
        given = {} if "prompt_embeds" in arguments else {"prompt": list(prompts)}
        latents = noise(model, len(prompts)).to(pipeline.dtype)
        fixed = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "pt", "latents": latents}
        return self.pixels(pipeline(**given, **fixed, **self.CALL, **arguments))

    @staticmethod
    def pixels(output: Any) -> Tensor:
        images: Tensor = output.images
        return images

    def negative(self, model: TextToImage) -> Tensor:
        """Some negative that no text has, (1, L', D')."""
        generator = torch.Generator().manual_seed(1)
        start = model.starting_point(model.encode_negatives(["bad"]))
        return start + 0.5 * torch.randn(start.shape, generator=generator) * learned_entries(model)

    def embedding(self, model: TextToImage, negative: Tensor) -> NegativeEmbedding:
        metadata = EmbeddingMetadata(model.text_encoder_hash, text_encoder=model.text_encoder_name)
        return NegativeEmbedding(model.embedding_layout.unpack_negative(negative), metadata)

    # Images

    @pytest.mark.parametrize("batch", [1, 3])
    def test_images_are_those_of_the_pipeline(self, model: FrozenPipeline, pipeline: Any, batch: int) -> None:
        prompts, negative = list(PROMPTS[:batch]), self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, prompts)
        expected = self.call(pipeline, model, prompts, **arguments)
        images = images_of(model, prompts, negative)
        assert images.shape == expected.shape and images.dtype == torch.float32
        assert expected.std() > 0.05, "there is something to compare"
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
        with_null = images_of(model, prompts, model.null_embedding())
        assert (images - with_null).abs().max() > 1e-3, "the negative has an effect"

    def test_null_is_what_the_pipeline_takes_without_a_negative(self, model: FrozenPipeline, pipeline: Any) -> None:
        expected = self.call(pipeline, model, PROMPTS)
        images = images_of(model, PROMPTS, model.null_embedding())
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)

    def test_a_handwritten_negative_is_the_pipelines(self, model: FrozenPipeline, pipeline: Any) -> None:
        expected = self.call(pipeline, model, PROMPTS, negative_prompt=["bad", "bad", "bad"])
        torch.testing.assert_close(
            images_of(model, PROMPTS, model.encode_negatives(["bad"])), expected, atol=1e-4, rtol=0
        )

    def test_rows_of_a_batch_do_not_touch_each_other(self, model: FrozenPipeline) -> None:
        latents, embeds, t = noise(model, 3), model.encode_prompts(PROMPTS), torch.tensor(501)
        with torch.no_grad():
            outputs, images = model.for_prompts(PROMPTS).denoise(latents, t, embeds), model.decode(latents)
            for i in range(3):
                row = slice(i, i + 1)
                alone = model.for_prompts(PROMPTS[row]).denoise(latents[row], t, embeds[row])
                torch.testing.assert_close(outputs[row], alone, atol=2e-5, rtol=1e-5)
                torch.testing.assert_close(images[row], model.decode(latents[row]), atol=2e-5, rtol=1e-5)
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3
        for i, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(embeds[i : i + 1], model.encode_prompts([prompt]), atol=1e-5, rtol=1e-5)

    def test_rows_may_have_timesteps_of_their_own(self, model: FrozenPipeline) -> None:
        """As prompts that are tuned together have."""
        latents, embeds, timesteps = noise(model, 3), model.encode_prompts(PROMPTS), torch.tensor([901, 501, 1])
        with torch.no_grad():
            outputs = model.for_prompts(PROMPTS).denoise(latents, timesteps, embeds)
            for i, t in enumerate(timesteps):
                row = slice(i, i + 1)
                alone = model.for_prompts(PROMPTS[row]).denoise(latents[row], t, embeds[row])
                torch.testing.assert_close(outputs[row], alone, atol=2e-5, rtol=1e-5)

    # Gradients

    def test_every_learned_tensor_gets_a_gradient_and_nothing_else_does(self, model: FrozenPipeline) -> None:
        n = model.starting_point(model.encode_negatives([""])).expand(2, -1, -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.rewards(model, n, PROMPTS[:2]).sum(), n)
        learned = learned_entries(model).expand_as(gradient)
        assert gradient.isfinite().all()
        assert gradient[~learned].eq(0).all()
        tensors = model.embedding_layout.unpack_negative(gradient)
        tokens = tensors[PROMPT_EMBEDS].abs().amax(dim=-1)
        assert (tokens > 0).all(), "every token gets a gradient"
        assert len(tensors[PROMPT_EMBEDS][0].unique(dim=0)) == tokens.shape[1], "and each its own"
        if POOLED_EMBEDS in tensors:
            assert tensors[POOLED_EMBEDS].ne(0).all()
        assert not any(p.grad is not None or p.requires_grad for p in self.parameters(model))

    def test_the_gradient_is_that_of_finite_differences(self, model: FrozenPipeline) -> None:
        """Up to x_0: the decoder's clamp has another gradient on purpose."""

        def value(n: Tensor) -> Tensor:
            embeds, schedule = model.encode_prompts(PROMPTS[:1]), model.schedule(STEPS)
            shown = model.for_prompts(PROMPTS[:1])
            guidance = model.guidance(sampled(), schedule)
            x0 = predict_x0(shown.denoise, noise(model, 1), STEPS - 2, embeds, n, schedule, guidance)
            return x0.square().mean()

        n = model.starting_point(model.encode_negatives([""]))
        direction = torch.randn(n.shape, generator=torch.Generator().manual_seed(2)) * learned_entries(model)
        leaf, step = n.clone().requires_grad_(), 1e-2
        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        with torch.no_grad():
            above, below = (value(n + s * direction).item() for s in (step, -step))
        assert (gradient * direction).sum().item() == pytest.approx((above - below) / (2 * step), rel=0.02)

    def test_twenty_steps_raise_the_reward(self, model: FrozenPipeline) -> None:
        start = model.starting_point(model.encode_negatives([""]))
        ascent = Ascent(start, AscentSettings(lr=0.05, steps=20, weight_decay=0.1))
        rewards = []
        for _ in range(20):
            n = ascent.embedding.clone().requires_grad_()
            mean = self.rewards(model, n, PROMPTS).mean()
            rewards.append(mean.item())
            ascent.update(torch.autograd.grad(mean, n)[0])
        with torch.no_grad():
            rewards.append(self.rewards(model, ascent.embedding, PROMPTS).mean().item())
        assert rewards == sorted(rewards) and rewards[-1] > rewards[0] + 5e-4
        fixed = ~learned_entries(model)
        before, after = (model.embedding_layout.unpack(n) for n in (start, ascent.embedding))
        assert ascent.embedding[fixed].eq(0).equal(start[fixed].eq(0)), "zeros stay zeros"
        if ATTENTION_MASK in before:
            assert torch.equal(before[ATTENTION_MASK], after[ATTENTION_MASK]), "weight decay leaves the mask alone"

    def test_saving_memory_changes_no_result(self, model: FrozenPipeline, folder: Path) -> None:
        saving = self.load(folder)
        saving.save_memory()
        gradients = []
        for m in (model, saving):
            n = model.starting_point(model.encode_negatives([""])).requires_grad_()
            gradients.append(torch.autograd.grad(self.rewards(m, n, PROMPTS).sum(), n)[0])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
        negative = self.negative(model)
        torch.testing.assert_close(
            images_of(saving, PROMPTS, negative), images_of(model, PROMPTS, negative), atol=1e-5, rtol=0
        )
        with_less, with_all = (saving.gradient_memory(saving=less) for less in (True, False))
        assert 0 < with_less.denoise <= with_all.denoise and 0 < with_less.decode < with_all.decode
        saving.save_memory(False)
        parts = (part for module in self.modules(saving) for part in module.modules())
        undone = not any(getattr(part, "gradient_checkpointing", False) for part in parts)
        assert undone, "the next trial of a sweep may have more memory"

    @staticmethod
    def rewards(model: TextToImage, n: Tensor, prompts: Sequence[str]) -> Tensor:
        schedule, model = model.schedule(STEPS), model.for_prompts(prompts)
        guidance = model.guidance(sampled(), schedule)
        return reward_of_prediction(
            model.denoise, model.decode, redness, noise(model, len(prompts)), STEPS - 2, prompts,
            model.encode_prompts(prompts), n, schedule, guidance,
        )  # fmt: skip

    # The model

    def test_everything_is_frozen_and_channels_last(self, model: FrozenPipeline) -> None:
        assert not any(p.requires_grad for p in self.parameters(model))
        assert not any(module.training for module in self.modules(model))
        conv = model.pipeline.vae.decoder.conv_in
        if conv.weight.ndim == 4:  # of images
            assert conv.weight.is_contiguous(memory_format=torch.channels_last)

    def test_bfloat16_inside_float32_outside(self, model: FrozenPipeline, folder: Path) -> None:
        half = self.load(folder, dtype="bfloat16")
        assert {p.dtype for p in self.parameters(half)} == {torch.bfloat16}
        assert half.text_encoder_hash == model.text_encoder_hash
        latents, embeds = noise(half, 1), half.encode_prompts(["a"])
        assert embeds.dtype == torch.float32
        assert half.for_prompts(["a"]).denoise(latents, torch.tensor(500), embeds).dtype == torch.float32
        assert half.decode(latents).dtype == torch.float32
        negative = self.negative(model)
        difference = images_of(half, PROMPTS, negative) - images_of(model, PROMPTS, negative)
        assert difference.abs().mean() < 0.03
        n = negative.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.rewards(half, n, PROMPTS[:1]).sum(), n)
        (exact,) = torch.autograd.grad(self.rewards(model, n, PROMPTS[:1]).sum(), n)
        assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.98

    def test_float16_has_the_gradient_of_a_small_reward(self, model: FrozenPipeline, folder: Path) -> None:
        half = self.load(folder, dtype="float16")
        assert torch.float16 in {p.dtype for p in half.denoiser.parameters()}
        assert half.text_encoder_hash == model.text_encoder_hash
        negative = self.negative(model)

        def gradient(of: FrozenPipeline) -> Tensor:
            n = negative.clone().requires_grad_()
            (found,) = torch.autograd.grad(1e-9 * self.rewards(of, n, PROMPTS[:1]).sum(), n)
            return 1e9 * found.flatten()

        found, exact = gradient(half), gradient(model)
        assert torch.cosine_similarity(found, exact, dim=0) > 0.999
        assert 0.98 < found.norm() / exact.norm() < 1.02

    def test_prompts_that_are_too_long_are_counted_and_cut(
        self, model: FrozenPipeline, capfd: pytest.CaptureFixture[str]
    ) -> None:
        capfd.readouterr()
        long = "a" * 2 * model.embedding_layout.tokens
        assert model.count_truncated(["a", long, "", long]) == 2
        assert model.count_truncated(["a"]) == model.count_truncated([]) == 0
        assert model.encode_prompts([long]).shape == (1, *model.embedding_shape)
        assert capfd.readouterr() == ("", "")

    def test_shapes_and_operations_are_known_without_weights(self, model: FrozenPipeline, folder: Path) -> None:
        options = type(model).options(ModelConfig(id=str(folder), **self.OPTIONS))
        shaped = type(model).without_weights(folder, **options)
        assert shaped.embedding_layout == model.embedding_layout and shaped.latent_shape == model.latent_shape
        latents, embeds = (torch.empty(2, *s, device="meta") for s in (model.latent_shape, model.embedding_shape))
        assert shaped.denoise(latents, torch.tensor(5), embeds).shape == latents.shape

    def test_the_text_encoder_is_known_without_the_rest(self, model: FrozenPipeline, folder: Path) -> None:
        found = identify_text_encoder(ModelConfig(id=str(folder), **self.OPTIONS))
        assert (found.name, found.hash) == (model.text_encoder_name, model.text_encoder_hash)
        assert found.layout == model.embedding_layout
        assert len(found.hash) == 16 and int(found.hash, 16) >= 0
        assert model.name == "tiny"

    def test_the_hash_tells_encoders_apart_and_nothing_else(self, model: FrozenPipeline, tmp_path: Path) -> None:
        self.build().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
        half = ModelConfig(id=str(tmp_path / "half"), variant="fp16")
        assert identify_text_encoder(half).hash == model.text_encoder_hash
        assert hash_of(self.build(seed=1)) != model.text_encoder_hash
        changed = self.build()
        assert hash_of(changed) == model.text_encoder_hash
        with torch.no_grad():
            next(reversed(list(changed.text_encoder.parameters()))).flatten()[-1] += 0.01
        assert hash_of(changed) != model.text_encoder_hash

    # Files

    def test_saved_and_loaded(self, model: FrozenPipeline, pipeline: Any, tmp_path: Path) -> None:
        path = tmp_path / "n.safetensors"
        stored = self.embedding(model, self.negative(model).half())
        stored.save(path)
        loaded = NegativeEmbedding.load(path)
        assert loaded.metadata == stored.metadata and loaded.tensors.keys() == stored.tensors.keys()
        assert {name: tuple(tensor.shape) for name, tensor in loaded.tensors.items()} == model.embedding_layout.shapes
        loaded.check_fits(model.embedding_layout.shapes, model.text_encoder_hash, model.text_encoder_name)
        packed = model.embedding_layout.pack(loaded.tensors)
        assert packed.dtype == torch.float32 and torch.equal(packed, self.negative(model).half().float())
        expected = self.call(pipeline, model, PROMPTS, **loaded.for_pipeline(pipeline, PROMPTS))
        torch.testing.assert_close(images_of(model, PROMPTS, packed), expected, atol=1e-4, rtol=0)

    def test_wrong_shapes_are_named(self, model: FrozenPipeline, pipeline: Any) -> None:
        whole = self.embedding(model, self.negative(model))
        for name, tensor in whole.tensors.items():
            if name == ATTENTION_MASK:
                continue
            longer = torch.cat([tensor, tensor], dim=-1)
            wrong = NegativeEmbedding({**whole.tensors, name: longer}, EmbeddingMetadata(""))
            for check in (
                lambda wrong=wrong: wrong.check_fits(model.embedding_layout.shapes, "0" * 16, "mine"),
                lambda wrong=wrong: wrong.for_pipeline(pipeline),
            ):
                with pytest.raises(UserError) as caught:
                    check()
                assert str(tuple(longer.shape[1:])) in str(caught.value)
                assert str(tuple(tensor.shape[1:])) in str(caught.value)
                assert "\n" not in str(caught.value)

    def test_a_pipeline_gets_its_own_dtype_and_a_row_for_each_prompt(self, model: FrozenPipeline, folder: Path) -> None:
        rounded = self.plain_pipeline(folder, dtype=torch.bfloat16)
        embedding = self.embedding(model, self.negative(model))
        for prompts, count in ((None, 1), ("one", 1), (PROMPTS, 3)):
            arguments = embedding.for_pipeline(rounded, prompts)
            for name, tensor in embedding.tensors.items():
                if name == ATTENTION_MASK and name not in signature(type(rounded).__call__).parameters:
                    continue
                given = arguments[name] if isinstance(arguments[name], Tensor) else torch.stack(arguments[name])
                assert given[:, : tensor.shape[1]].shape == (count, *tensor.shape[1:])  # it may have been filled up
                assert given.dtype == (self.MASK if name == ATTENTION_MASK else torch.bfloat16)
        images = self.call(rounded, model, PROMPTS, **embedding.for_pipeline(rounded, PROMPTS))
        assert images.isfinite().all()

    def test_another_text_encoder_is_refused(self, model: FrozenPipeline) -> None:
        other = self.build(seed=1)
        with pytest.raises(UserError, match=f"{model.text_encoder_hash}.*{hash_of(other)}"):
            self.embedding(model, self.negative(model)).for_pipeline(other)
        foreign = NegativeEmbedding(self.embedding(model, self.negative(model)).tensors, EmbeddingMetadata(""))
        foreign.for_pipeline(other)

    def test_longer_prompts_take_a_repeated_embedding(self, model: FrozenPipeline, pipeline: Any) -> None:
        """Twice the same tokens in both branches, so the images have to be those of once."""
        embedding, length = self.embedding(model, self.negative(model)), model.embedding_layout.negative_tokens
        if model.JOINT_ATTENTION:
            with pytest.raises(UserError, match=f"one sequence.*{length} tokens"):
                embedding.for_pipeline(pipeline, PROMPTS, tokens=2 * length)
            return
        arguments = embedding.for_pipeline(pipeline, PROMPTS, tokens=2 * length)
        for name, tensor in model.embedding_layout.unpack(model.encode_prompts(PROMPTS)).items():
            twice = tensor if name == POOLED_EMBEDS else torch.cat([tensor, tensor], dim=1)
            arguments[name.removeprefix("negative_")] = twice
        assert arguments[PROMPT_EMBEDS].shape[1] == 2 * length
        images = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images, images_of(model, PROMPTS, self.negative(model)), atol=1e-4, rtol=0)
        with pytest.raises(UserError, match=str(2 * length)):
            embedding.for_pipeline(pipeline, tokens=length + 1)

    @staticmethod
    def modules(model: FrozenPipeline) -> list[torch.nn.Module]:
        return [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]

    @classmethod
    def parameters(cls, model: FrozenPipeline) -> list[torch.nn.Parameter]:
        return [parameter for module in cls.modules(model) for parameter in module.parameters()]

    @pytest.mark.slow
    def test_compiled_it_is_two_graphs_of_each_network(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        check_two_graphs_of_each_network(lambda compile: self.load(folder, compile=compile), monkeypatch, saving=True)
