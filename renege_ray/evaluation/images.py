"""Use case: make the images of an evaluation, score them, keep them: rows of its table, a batch at a time."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor

from renege_ray.config.run import ModelConfig, RunConfig
from renege_ray.embeddings.names import ComparedNegative
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.evaluation.comparison import BLACK, FAILED, NAN, OK
from renege_ray.evaluation.table import ImageToMake, make_row
from renege_ray.models.base import TextToImage
from renege_ray.output.names import readable
from renege_ray.output.pictures import animation, to_pil
from renege_ray.prompts.refine import Refiner
from renege_ray.rewards.base import Scorer, prepare_texts
from renege_ray.rewards.video.frames import frames_of
from renege_ray.sampling.batches import MicroBatches, together_or_alone
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, generate, score

Row = dict[str, object]
BLACKEST = 2 / 255  # no pixel of a black image is brighter
LOSSLESS_UP_TO = 128  # pixels a side: small images are small files anyway
WEBP_QUALITY = 90


@dataclass(frozen=True)
class Loaders:
    """How to get what is needed, once it is needed."""

    model: Callable[[ModelConfig], TextToImage]
    refiner: Callable[[str, tuple[str, str]], Refiner]


class ImageMaker:
    """Makes rows. One model is loaded at a time, so images of one model are better made one after the other.

    Attributes:
        names: of the scores.
    """

    def __init__(
        self,
        config: RunConfig,
        negatives: Sequence[ComparedNegative],
        scorers: Sequence[Scorer],
        loaders: Loaders,
        keep: Callable[[str, bytes], None],
    ) -> None:
        """`keep`: stores a file below the folder of images."""
        self._config, self._negatives, self._scorers = config, negatives, scorers
        self._load_model, self._refiner, self._keep = loaders.model, cache(loaders.refiner), keep
        self._open_table = cache(PromptEmbeddings.open)
        self.names = [name for scorer in scorers for name in scorer.names]
        self._model: tuple[ModelConfig, TextToImage, EncodedPrompts] | None = None
        self._batches = MicroBatches("auto", config.evaluation.batch_size, "evaluation.batch_size")

    def rows(
        self,
        items: Sequence[ImageToMake],
        about_to: Callable[[Sequence[ImageToMake]], None],
        about_to_read: Callable[[Sequence[ImageToMake]], None] = lambda batch: None,
    ) -> Iterator[Row]:
        """The rows of images, in order. `about_to` is told of each batch before it is computed, `about_to_read` of each
        before its prompts are encoded.
        """

        def compute(batch: Sequence[ImageToMake]) -> list[Row]:
            about_to(batch)
            # Memory is a matter of the batch's size, and a disk that takes no file takes none of any image.
            return together_or_alone(batch, self._made, self.failed, (torch.cuda.OutOfMemoryError, OSError))

        for _, same_model in groupby(items, key=lambda item: self._negatives[item.method].method.model):
            of_model = list(same_model)
            self._read_texts(of_model, about_to_read)
            for _, rows in self._batches.over(of_model, compute):
                yield from rows

    def failed(self, item: ImageToMake, error: str) -> Row:
        """The row of an image that cannot be made."""
        negative = self._negatives[item.method]
        return make_row(item, negative.label, negative.model.id, {}, 0.0, status=FAILED, error=error)

    def _read_texts(self, items: Sequence[ImageToMake], about_to_read: Callable[[Sequence[ImageToMake]], None]) -> None:
        """Encode prompts together, before their images are made: then the text encoders need not be moved for each
        batch. What a language model refines is encoded when it is there.
        """
        with suppress(Exception):  # it is raised again with a batch, where it is known what to do about it
            model, encoded = self._load(self._negatives[items[0].method].model)
            size = self._config.evaluation.batch_size
            with model.encoding():
                for start in range(0, len(items), size):
                    some = items[start : start + size]
                    about_to_read(some)
                    encoded.prepare(item.prompt for item in some if self._negatives[item.method].refiner is None)
            prepare_texts(self._scorers, (item.prompt for item in items))

    def _made(self, batch: Sequence[ImageToMake]) -> list[Row]:
        started = time.monotonic()
        model, encoded = self._load(self._negatives[batch[0].method].model)
        prompts = [self._refined(item) for item in batch]
        embeddings, marks = self._embeddings(batch, encoded)
        pairs = [Pair(prompt, item.seed) for prompt, item in zip(prompts, batch, strict=True)]
        images = generate(model, embeddings, pairs, self._config.sampling, encoded).float()
        scores = self._scores(images, [item.prompt for item in batch])
        images = images.cpu()
        files = [self._keep_image(item, image) for item, image in zip(batch, images, strict=True)]
        seconds = (time.monotonic() - started) / len(batch)
        return [
            make_row(
                item, self._negatives[item.method].label, model.name,
                {name: float(values[i]) for name, values in scores.items()}, seconds,
                refined_prompt=prompt if self._negatives[item.method].refiner else "",
                status=status_of(images[i]), marks=marks[i], image=files[i],
            )
            for i, (item, prompt) in enumerate(zip(batch, prompts, strict=True))
        ]  # fmt: skip

    def _load(self, wanted: ModelConfig) -> tuple[TextToImage, EncodedPrompts]:
        if self._model is None or self._model[0] != wanted:
            self._model = None  # before the next one is loaded: there may be no room for two
            model = self._load_model(wanted)
            self._model = wanted, model, EncodedPrompts(model, capacity=1000)
        return self._model[1], self._model[2]

    def _refined(self, item: ImageToMake) -> str:
        negative = self._negatives[item.method]
        if negative.refiner is None:
            return item.prompt
        return self._refiner(negative.method.refine, negative.refiner)(item.prompt)

    def _embeddings(self, batch: Sequence[ImageToMake], encoded: EncodedPrompts) -> tuple[Tensor, list[str]]:
        """The negatives (B, L, D) of a batch, and the marks of its rows. Tuned prompts go by the original words."""
        negatives = [self._negatives[item.method] for item in batch]
        found = [
            negative.embedding_for(item.prompt, encoded, self._open_table)
            for item, negative in zip(batch, negatives, strict=True)
        ]
        return torch.cat([embedding for embedding, _ in found]), [mark for _, mark in found]

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,) float64}; NaN for images that are not finite."""
        finite = images.isfinite().flatten(1).all(dim=1)
        found = score(self._scorers, images.nan_to_num(0.0, 0.0, 0.0), prompts)
        return {name: found[name].where(finite, torch.nan).cpu().double() for name in self.names}

    def _keep_image(self, item: ImageToMake, image: Tensor) -> str:
        """Store an image as configured. Returns its path below the folder of images, "" if it is not kept."""
        form = self._config.evaluation.keep_images
        if form == "none" or not image.isfinite().all():
            return ""
        path = f"{folder_of(self._negatives[item.method])}/{item.prompt_id}-{item.pair_index}.{form}"
        self._keep(path, encode_image([to_pil(frame) for frame in frames_of(image)], form))
        return path


def folder_of(negative: ComparedNegative) -> str:
    """The folder of a method's images: two methods of one label, now and later, have two."""
    return f"{readable(negative.label)}-{negative.key[:8]}".lstrip("-")


def status_of(image: Tensor) -> str:
    """What there is to say of an image (3, H, W), or a video (3, F, H, W), in [0, 1]."""
    if not image.isfinite().all():
        return NAN
    return BLACK if float(image.max()) <= BLACKEST else OK


def encode_image(frames: Sequence[Image.Image], form: str) -> bytes:
    """The file of an image, animated where it has several frames; form: "webp" or "png"."""
    first, *following = frames
    options = animation(following)
    if form == "webp":
        small = max(first.size) <= LOSSLESS_UP_TO
        options |= {"lossless": True} if small else {"quality": WEBP_QUALITY}
    buffer = io.BytesIO()
    first.save(buffer, form, **options)
    return buffer.getvalue()
