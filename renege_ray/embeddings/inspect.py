"""`inspect`: what is known of an embedding file, as text."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from renege_ray.method.embedding import NegativeEmbedding

# (L, D) of the text encoders that the families of models come with.
KNOWN_SHAPES = {
    (77, 768): "Stable Diffusion 1.x (CLIP ViT-L/14)",
    (77, 1024): "Stable Diffusion 2.x (OpenCLIP ViT-H/14)",
    (77, 2048): "Stable Diffusion XL (CLIP ViT-L/14 and OpenCLIP ViT-bigG/14)",
    (120, 4096): "PixArt-alpha (T5 v1.1 XXL)",
    (300, 4096): "PixArt-sigma (T5 v1.1 XXL)",
}


def describe(path: Path) -> str:
    """Shapes, types, norms and metadata of the embedding in a file.

    Raises:
        UserError: the file holds no embedding.
    """
    embedding = NegativeEmbedding.load(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{path}: {path.stat().st_size} bytes, SHA-256 {digest}"]
    for name, tensor in embedding.tensors.items():
        lines.append(f"{name}: {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
        lines.append(f"  {_norms(tensor)}" if tensor.is_floating_point() else f"  values {tensor.unique().tolist()}")
    length, width = embedding.prompt_embeds.shape[1:]
    guess = KNOWN_SHAPES.get((length, width))
    lines.append(f"by its shape for: {guess or 'no model family that is known here'}")
    fields = {name: value for name, value in asdict(embedding.metadata).items() if value not in ("", None, 0)}
    if not fields:
        lines.append("metadata: none, so it is checked against a model by its shape alone; `convert` can add some")
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in fields.items())])


def _norms(tensor: Tensor) -> str:
    """The Euclidean norms of the rows (tokens), and the range of the values."""
    norms = tensor.double().flatten(0, -2).norm(dim=-1)
    values = f"values {tensor.min().item():.4g} to {tensor.max().item():.4g}"
    if len(norms) == 1:
        return f"norm {norms[0].item():.4g}; {values}"
    return (
        f"norm of a token: mean {norms.mean().item():.4g}, from {norms.min().item():.4g} (token {int(norms.argmin())}) "
        f"to {norms.max().item():.4g} (token {int(norms.argmax())}), first {norms[0].item():.4g}; {values}"
    )
