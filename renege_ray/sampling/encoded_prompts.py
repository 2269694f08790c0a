"""Prompts are encoded once: what is kept of them, in front of the text encoder."""

from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
from safetensors import SafetensorError
from torch import Tensor

from renege_ray.errors import describe
from renege_ray.models.base import TextToImage
from renege_ray.models.networks.on_demand import OncePerText
from renege_ray.sampling.stored_prompts import StoredPrompts, store
from renege_ray.version import __version__

KEPT_BYTES = 2 * 2**30
"""Of embeddings in memory: 18,000 prompts of SD1.5 in bfloat16, 2,200 of PixArt."""


KEPT_NEGATIVES = 64


class EncodedPrompts:
    """Encodes prompts with a model's text encoder, and keeps them in the type that the networks compute in, as which
    the denoiser takes them.

    A training, which knows all of its prompts, stores them in files that the machine's processes share (`share`). Where
    prompts come and go, the latest are kept in memory; `prepare` encodes those of the next while together. Both leave
    the text encoder where it rests. Any other prompt brings it back to the accelerator for the moment.

    Each prompt is encoded alone, never in a batch with others: see `OncePerText`.
    """

    def __init__(self, model: TextToImage, capacity: int | None = None) -> None:
        """`capacity`: how many prompts are kept in memory; None: `KEPT_BYTES` of them."""
        self._model = model
        size = prod(model.embedding_shape) * model.dtype.itemsize
        kept = max(1, KEPT_BYTES // size) if capacity is None else capacity
        self._kept = OncePerText(self._encode, model.encoding, kept)
        self._negatives = OncePerText(self._encode_negative, model.encoding, KEPT_NEGATIVES)
        self._stored: StoredPrompts | None = None
        self._null: Tensor | None = None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, L, D) float32 on the model's device."""
        stored = self._stored
        here = {prompt: stored[prompt] for prompt in prompts if prompt in stored} if stored is not None else {}
        others = [prompt for prompt in dict.fromkeys(prompts) if prompt not in here]
        here |= zip(others, self._kept(others), strict=True)
        return torch.stack([here[prompt] for prompt in prompts]).to(self._model.device).float()

    def negatives(self, texts: Sequence[str]) -> Tensor:
        """The same of negative prompts (see `TextToImage.encode_negatives`)."""
        return torch.stack(self._negatives(texts)).to(self._model.device).float()

    def null(self) -> Tensor:
        """The model's null embedding, (1, L, D) float32 on its device; computed once."""
        if self._null is None:
            self._null = self._model.null_embedding()
        return self._null

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts that will be asked for; see `OncePerText.prepare`."""
        self._kept.prepare(prompt for prompt in prompts if self._stored is None or prompt not in self._stored)

    def share(
        self, prompts: Iterable[str], say: Callable[[str], None] = lambda line: None, *, negatives: Iterable[str] = ()
    ) -> None:
        """Encode all prompts of a training, together with the other processes of this machine that want the same, and
        the null embedding and the negatives.

        Where the temporary folder does not take them, that is said, and prompts are encoded when they are needed.
        """
        model = self._model
        # On a CPU the last bits of a sum are a matter of how many threads share it.
        device = f"{model.device.type} {torch.get_num_threads() if model.device.type == 'cpu' else ''}"
        key = (type(model).__name__, model.name, model.text_encoder_hash, __version__, device)
        try:
            with model.encoding():
                self.null()
                self._negatives.prepare(negatives)
                self._stored = store(self._encode, key, prompts, model.embedding_shape, model.dtype, say)
        except (OSError, SafetensorError) as error:
            say(
                f"encoded prompts cannot be kept in the temporary folder ({describe(error)}): each is encoded when it "
                "is needed; set TMPDIR to a folder with room for them to have it done once"
            )

    def close(self) -> None:
        """Nothing is needed of what was stored, unless in this process."""
        if self._stored is not None:
            self._stored.close()

    def _encode(self, prompt: str) -> Tensor:
        """(L, D) on the CPU."""
        with torch.no_grad():
            return self._model.encode_prompts([prompt])[0].to(self._model.dtype).cpu()

    def _encode_negative(self, text: str) -> Tensor:
        with torch.no_grad():
            return self._model.encode_negatives([text])[0].to(self._model.dtype).cpu()
