"""How far an embedding is from the null and the handwritten one, token by token: L2 distance and cosine."""

import argparse
import math
from collections.abc import Mapping
from itertools import combinations

import torch
from PIL import Image
from torch import Tensor

from renege_ray.evaluation.analyses.base import Findings, Subject
from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.output.pictures import render


def token_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """|a_l - b_l| and cos(a_l, b_l) for each row of (L, D), (L,) float64 each; a row of zeros has no cosine (NaN)."""
    a, b = a.double().cpu(), b.double().cpu()
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(lengths > 0, (a * b).sum(dim=1) / lengths, math.nan)
    return (a - b).norm(dim=1), cosine


def add_flags(command: argparse.ArgumentParser) -> None:
    """This analysis has no flags of its own."""


def analyse(subject: Subject) -> Findings:
    """The distances between null, handwritten and the embedding, as a table and a figure."""
    negatives = {name: _rows(subject.model.embedding_layout, n) for name, n in subject.negatives().items()}
    places = list(next(iter(negatives.values())))
    pairs = {
        f"{b} to {a}": {place: token_distances(negatives[a][place], negatives[b][place]) for place in places}
        for a, b in combinations(negatives, 2)
    }
    header = ["token", f"|{subject.label}|", *(f"{kind} {pair}" for pair in pairs for kind in ("L2", "cos"))]
    rows = []
    for place in places:
        norms = negatives[subject.label][place].double().norm(dim=1).tolist()
        for token, norm in enumerate(norms):
            values = [float(column[token]) for found in pairs.values() for column in found[place]]
            cells = [f"{value:.3f}" if math.isfinite(value) else "" for value in (norm, *values)]
            rows.append([str(token) if place == PROMPT_EMBEDS else "pooled", *cells])
    metrics: dict[str, float] = {}
    means = []
    for pair, found in pairs.items():
        l2, cosine = (float(column.nanmean()) for column in found[PROMPT_EMBEDS])
        key = f"distance/{pair.replace(' ', '_')}"
        metrics |= {f"{key}/l2_mean": l2, f"{key}/cosine_mean": cosine}
        means.append(f"{pair}: L2 {l2:.3f}, cosine {cosine:.3f}")
    words = f"means over the tokens: {'; '.join(means)}; handwritten is {subject.handwritten!r}"
    curves = {pair: found[PROMPT_EMBEDS] for pair, found in pairs.items()}
    return Findings(header, rows, words, metrics, {"distance": draw(curves)})


def _rows(layout: EmbeddingLayout, embedding: Tensor) -> dict[str, Tensor]:
    """The tokens (L, D) and, where there is one, the pooled embedding (1, P) of a packed embedding."""
    tensors = layout.unpack_negative(embedding)
    rows = {PROMPT_EMBEDS: tensors[PROMPT_EMBEDS][0]}
    return rows | ({POOLED_EMBEDS: tensors[POOLED_EMBEDS]} if POOLED_EMBEDS in tensors else {})


def draw(curves: Mapping[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """Distance and cosine over the tokens; what does not concern the embedding itself is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, kind, what in zip(figure.subplots(1, 2), (0, 1), ("L2 distance", "cosine"), strict=True):
        for pair, found in curves.items():
            style = "--" if pair == "handwritten to null" else "-"
            axes.plot(found[kind], style, marker="o", markersize=3, label=pair)
        axes.set(title=f"{what} by token", xlabel="token", ylabel=what)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return render(figure)
