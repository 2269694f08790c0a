"""The code that MLflow stores beside an embedding, on an embedding of several tensors."""

from pathlib import Path
from types import SimpleNamespace

import torch

from renege_ray.cluster.tracking.embedding_model import NegativeEmbeddingModel
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding


def test_it_hands_out_every_tensor_by_its_name(tmp_path: Path) -> None:
    tensors = {
        "negative_prompt_embeds": torch.randn(1, 4, 6),
        "negative_pooled_prompt_embeds": torch.randn(1, 5),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 1]]),
    }
    path = tmp_path / "n.safetensors"
    NegativeEmbedding(tensors, EmbeddingMetadata("abc")).save(path)
    model = NegativeEmbeddingModel()
    model.load_context(SimpleNamespace(artifacts={"embedding": str(path)}))
    assert model.metadata["text_encoder_hash"] == "abc"
    for name, tensor in model.arguments().items():
        assert torch.equal(tensor, tensors[name])
    assert torch.equal(torch.from_numpy(model.predict(None, None)), tensors["negative_prompt_embeds"])
    pipe = SimpleNamespace(device=torch.device("cpu"), text_encoder=SimpleNamespace(dtype=torch.bfloat16))
    types = {name: tensor.dtype for name, tensor in model.arguments(pipe).items()}
    assert types.keys() == tensors.keys()
    assert types["negative_pooled_prompt_embeds"] == torch.bfloat16
    assert types["negative_prompt_attention_mask"] == torch.int64
    assert model.negative_prompt_embeds(pipe).dtype == torch.bfloat16
