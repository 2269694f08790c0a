import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sentencepiece
import torch
from diffusers import DDIMScheduler

from renege_ray import NegativeEmbedding
from renege_ray.errors import UserError
from renege_ray.method import EmbeddingMetadata
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.families.pixart_alpha import PixArtAlpha
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.loading.lora import fuse_lora
from tests.models.conformance import PROMPTS, STEPS, Conformance, images_of, noise
from tests.tiny import build_tiny_pixart


class TestPixArtAlpha(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"use_resolution_binning": False}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_pixart(seed=seed)

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 120, 16), ATTENTION_MASK: (1, 120)}
        assert model.embedding_shape == (120, 17)
        assert model.encode_prompts(["", "ab"])[..., 16].sum(dim=1).tolist() == [1, 4]  # with the one that ends a text

    def test_learning_starts_at_the_same_images_with_every_token_attended_to(self, model: FrozenPipeline) -> None:
        for text in ("", "bad"):
            negative = model.encode_prompts([text])
            start = model.starting_point(negative)
            assert start[..., 16].eq(1).all()
            assert len(start[0].unique(dim=0)) == 120, "no two tokens are alike"
            difference = images_of(model, PROMPTS, start) - images_of(model, PROMPTS, negative)
            other = images_of(model, PROMPTS, model.encode_prompts(["a red circle"]))
            assert difference.abs().mean() < 0.1 * (other - images_of(model, PROMPTS, negative)).abs().mean()
            assert torch.equal(model.starting_point(start), start), "a second time changes nothing"
            assert torch.equal(model.starting_point(negative), start), "and it is no matter of chance"

    def test_a_foreign_file_attends_to_all_of_its_tokens(self, model: FrozenPipeline, pipeline: Any) -> None:
        """As the authors' file, which holds (1, 120, 4096) and nothing else."""
        n = torch.randn(1, 120, 16, generator=torch.Generator().manual_seed(3))
        foreign = NegativeEmbedding({PROMPT_EMBEDS: n}, EmbeddingMetadata(""))
        foreign.check_fits(model.embedding_layout.shapes, model.text_encoder_hash, "T5")
        packed = model.embedding_layout.pack(foreign.tensors)
        assert packed[..., 16].eq(1).all()
        expected = self.call(pipeline, model, PROMPTS, **foreign.for_pipeline(pipeline, PROMPTS))
        torch.testing.assert_close(images_of(model, PROMPTS, packed), expected, atol=1e-4, rtol=0)

    def test_prompts_are_cleaned_as_the_pipeline_cleans_them(self, model: FrozenPipeline, pipeline: Any) -> None:
        prompts = ["  A RED circle ", "Two."]
        expected = self.call(pipeline, model, prompts)
        torch.testing.assert_close(images_of(model, prompts, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_large_models_are_told_the_size(self) -> None:
        """Those for 1024x1024 pixels, 128x128 latents."""
        pipeline = build_tiny_pixart(sample_size=128)
        assert pipeline.transformer.use_additional_conditions
        pipeline.transformer.adaln_single.emb.resolution_embedder.linear_1.weight.data *= 20
        model = PixArtAlpha(pipeline, "tiny")
        latents, prompts = noise(model, 1), ["a"]
        t, embeds = torch.tensor([500]), model.encode_prompts(prompts)
        states, mask = embeds[..., :16], embeds[..., 16]
        size = {"resolution": torch.tensor([[256.0, 256.0]]), "aspect_ratio": torch.tensor([[1.0]])}
        with torch.no_grad():
            expected, other = (
                pipeline.transformer(latents, states, t, conditions, encoder_attention_mask=mask, return_dict=False)[0]
                for conditions in (size, size | {"resolution": torch.tensor([[64.0, 64.0]])})
            )
            output = model.denoise(latents, t[0], embeds)
        torch.testing.assert_close(output, expected[:, :4], atol=1e-5, rtol=1e-5)
        assert (expected - other).abs().max() > 1e-3

    def test_clipping_is_the_models_own_choice(self, model: FrozenPipeline) -> None:
        """diffusers' DDIM clips x_0 unless told otherwise; a model that says so is sampled so."""
        pipeline = self.build()
        pipeline.scheduler = DDIMScheduler()
        assert pipeline.scheduler.config.clip_sample
        clipped = PixArtAlpha(pipeline, "tiny")
        assert clipped.schedule(STEPS).clip_range == 1.0 and model.schedule(STEPS).clip_range is None
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(clipped, PROMPTS, negative), expected, atol=1e-4, rtol=0)

    def test_files_as_the_authors_published_them(self, folder: Path, model: FrozenPipeline, tmp_path: Path) -> None:
        """An older name of the transformer's class, and the tokenizer as a SentencePiece model alone."""
        old = Path(shutil.copytree(folder, tmp_path / "old"))
        index = json.loads((old / "model_index.json").read_text())
        index["transformer"] = ["diffusers", "Transformer2DModel"]
        (old / "model_index.json").write_text(json.dumps(index))
        file = old / "transformer" / "config.json"
        config = json.loads(file.read_text()) | {"_class_name": "Transformer2DModel", "double_self_attention": False}
        file.write_text(json.dumps(config))
        (old / "tokenizer" / "tokenizer.json").unlink()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a red circle", "a red disc", "a circle"] * 20),
            model_prefix=str(old / "tokenizer" / "spiece"), vocab_size=36, model_type="unigram", pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        loaded = self.load(old)
        assert type(loaded.pipeline.transformer).__name__ == "PixArtTransformer2DModel"
        latents, embeds = noise(model, 1), model.encode_prompts(["a"])
        t = torch.tensor(500)
        assert torch.equal(loaded.denoise(latents, t, embeds), model.denoise(latents, t, embeds))
        masks = loaded.encode_prompts(["", "a red circle"])[..., -1].sum(dim=1)
        assert masks[0] == 1 and 1 < masks[1] < len("a red circle"), "words are more than letters"
        assert loaded.without_weights(old).embedding_layout == model.embedding_layout

    def test_no_lora(self) -> None:
        with pytest.raises(UserError, match="PixArtAlphaPipeline"):
            fuse_lora(self.build(), "somebody/some-lora")
