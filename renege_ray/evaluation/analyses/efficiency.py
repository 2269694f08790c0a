"""Parameter efficiency (the paper's Table 1): how far the images move with a parameter, for each of its numbers.

    E(p) = |J|_F^2 / dim(p),      J = d z_T / d p      final latents of one image, through the whole sampler

as a mean over prompts and seeds, for the negative embedding n, for a LoRA of rank r on the attention projections, and
for all weights of the denoiser. |J|_F^2 is estimated by random probes: see `renege_ray.method.sensitivity`. All sets of
parameters see the same probes, so that a ratio of two is known better than either.

E has a unit: it changes when p is measured in another, and an embedding's numbers are not of a weight's size. So two
more figures stand beside it: |J|_F / dim(p), and E(p) rms(p)^2, which has no unit: the expected squared motion of the
latents for each number, when all numbers change independently by the same small share of their root mean square.

A LoRA adds B A to the weight W of a projection; at its start B = 0 and A is uniform in +-1 / sqrt(columns) (Hu et al.
2021, as peft has it, at alpha = r). There dz/dA = 0 and dz/dB = (dz/dW) A', so that no LoRA has to be put in.
"""

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from renege_ray.config.run import SamplingConfig
from renege_ray.config.sampling_flags import positive
from renege_ray.evaluation.analyses.base import Findings, Subject
from renege_ray.method.embedding import ATTENTION_MASK
from renege_ray.method.rollout import rollout
from renege_ray.method.sensitivity import probe_jacobian
from renege_ray.models.base import TextToImage
from renege_ray.output.pictures import render
from renege_ray.output.progress import counted
from renege_ray.output.statistics import Z_95
from renege_ray.sampling.draws import generator
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, initial_noise

NUM_PROBES, IMAGES_PER_PROBE, LORA_RANKS = 256, 4, (4, 16)
WEIGHTS = "all weights"
_PROJECTIONS = (".to_q", ".to_k", ".to_v", ".to_out.0")


@dataclass(frozen=True)
class Efficiency:
    """What is known of one set of parameters p."""

    size: int
    """dim(p)."""
    rms: float
    """Root mean square of its numbers."""
    squares: tuple[float, ...]
    """|v J|^2 of each probe, per image; their mean is the estimate of |J|_F^2."""

    @property
    def squared_norm(self) -> float:
        """|J|_F^2."""
        return math.fsum(self.squares) / len(self.squares)

    @property
    def value(self) -> float:
        """E(p) = |J|_F^2 / dim(p)."""
        return self.squared_norm / self.size

    @property
    def standard_error(self) -> float:
        """Of `value`, over probes and images; NaN for a single probe."""
        return standard_error(self.squares) / self.size

    @property
    def norm_per_number(self) -> float:
        """|J|_F / dim(p)."""
        return math.sqrt(self.squared_norm) / self.size

    @property
    def at_own_scale(self) -> float:
        """E(p) rms(p)^2."""
        return self.value * self.rms**2

    def ratio_to(self, other: "Efficiency") -> tuple[float, float]:
        """E(p) / E(q) and its standard error, where both are from the same probes (delta method)."""
        ratio = self.value / other.value
        residuals = [a / self.size - ratio * b / other.size for a, b in zip(self.squares, other.squares, strict=True)]
        return ratio, standard_error(residuals) / other.value


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN where there is only one."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def measure_efficiency(
    model: TextToImage,
    embedding: Tensor,
    probed: Iterable[Sequence[Pair]],
    encoded: EncodedPrompts,
    sampling: SamplingConfig,
    *,
    seed: int,
    lora_ranks: Sequence[int] = (),
) -> dict[str, Efficiency]:
    """E of "n", of "LoRA, rank r" for each r, and of "all weights".

    Args:
        model: the model; its weights are frozen again when this returns.
        embedding: n, (1, L, D).
        probed: for each probe, the prompts and seeds whose images it looks at.
        encoded: the prompts' embeddings.
        sampling: steps and guidance.
        seed: of the probes' signs and of the LoRAs' A.
        lora_ranks: r of each LoRA.
    """
    weights = dict(model.denoiser.named_parameters())
    projections = attention_projections(model.denoiser)
    loras = {f"LoRA, rank {rank}": lora_factors(projections, rank, seed) for rank in lora_ranks}
    squares: dict[str, list[float]] = {name: [] for name in ("n", *loras, WEIGHTS)}
    for k, pairs in enumerate(probed):
        of_n, of_weights = _products(model, embedding, weights, pairs, encoded, sampling, (seed, "probe", k))
        squares["n"].append(_square(of_n) / len(pairs))
        for name, factors in loras.items():
            of_b = [of_weights[layer] @ a.mT for layer, a in factors.items()]
            squares[name].append(sum(map(_square, of_b)) / len(pairs))
        squares[WEIGHTS].append(sum(map(_square, of_weights.values())) / len(pairs))

    of_embedding = model.embedding_layout.unpack_negative(embedding)
    numbers: dict[str, list[Tensor]] = {WEIGHTS: list(weights.values())}
    numbers["n"] = [tensor for name, tensor in of_embedding.items() if name != ATTENTION_MASK]
    numbers |= {name: _start(projections, factors) for name, factors in loras.items()}
    return {
        name: Efficiency(sum(p.numel() for p in numbers[name]), _rms(numbers[name]), tuple(squares[name]))
        for name in squares
    }


def _products(
    model: TextToImage,
    embedding: Tensor,
    weights: Mapping[str, Tensor],
    pairs: Sequence[Pair],
    encoded: EncodedPrompts,
    sampling: SamplingConfig,
    key: tuple[int, str, int],
) -> tuple[Tensor, dict[str, Tensor]]:
    """v J of one probe: for n, (B, L, D), a row for each image; for the weights, the sum over the images."""
    schedule = model.schedule(sampling.num_inference_steps)
    guidance = model.guidance(sampling, schedule)
    x_T = torch.cat([initial_noise(pair.seed, model.latent_shape) for pair in pairs]).to(model.device)
    c = encoded([pair.prompt for pair in pairs])
    n = embedding.to(model.device).repeat(len(pairs), 1, 1).requires_grad_()
    with torch.no_grad():
        path = rollout(model.denoise, x_T, c, n, schedule, guidance, keep=range(len(schedule)))
    signs = [torch.randint(2, model.latent_shape, generator=generator(*key, j)) * 2 - 1 for j in range(len(pairs))]
    probe = torch.stack(signs).to(x_T)
    with _requiring_gradients(weights.values()):
        leaves = [n, *weights.values()]
        of_n, *rest = probe_jacobian(model.denoise, path.kept, c, n, schedule, guidance, probe, leaves)
    return of_n, dict(zip(weights, rest, strict=True))


@contextmanager
def _requiring_gradients(weights: Iterable[Tensor]) -> Iterator[None]:
    for weight in weights:
        weight.requires_grad_()
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def attention_projections(denoiser: nn.Module) -> dict[str, Tensor]:
    """The weights (rows, columns) of the query, key, value and output projections of every attention, by name."""
    return {
        f"{name}.weight": module.weight
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(_PROJECTIONS)
    }


def lora_factors(projections: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """A of a new LoRA for each projection, (rank, columns), uniform in +-1 / sqrt(columns)."""
    factors = {}
    for name, weight in projections.items():
        columns = weight.shape[1]
        draw = torch.rand(rank, columns, generator=generator(seed, "lora", rank, name))
        factors[name] = ((2 * draw - 1) / math.sqrt(columns)).to(weight)
    return factors


def _start(projections: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> list[Tensor]:
    """All numbers of a new LoRA: A, and B = 0, (rows, rank)."""
    return [p for name, a in factors.items() for p in (a, a.new_zeros(projections[name].shape[0], len(a)))]


def _square(tensor: Tensor) -> float:
    return float(tensor.cpu().double().square().sum())


def _rms(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(map(_square, tensors)) / sum(tensor.numel() for tensor in tensors))


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of this analysis alone."""
    add = command.add_argument
    add(
        "--num-probes", type=positive, default=NUM_PROBES, metavar="K",
        help=f"random probes, each of other images (default: {NUM_PROBES}); four times as many halve the intervals",
    )  # fmt: skip
    add(
        "--images-per-probe", type=positive, default=IMAGES_PER_PROBE, metavar="B",
        help=f"images computed at once (default: {IMAGES_PER_PROBE}); fewer take less memory",
    )  # fmt: skip
    ranks = ",".join(map(str, LORA_RANKS))
    add("--lora-ranks", type=_ranks, default=LORA_RANKS, metavar="R,...", help=f"of the LoRAs (default: {ranks})")


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def analyse(subject: Subject) -> Findings:
    """Table 1 of a model: the table, a figure, and all figures by name."""
    options = subject.options
    groups = subject.pairs(options.num_probes * options.images_per_probe)
    probed = [groups[k :: options.num_probes] for k in range(options.num_probes)]
    found = measure_efficiency(
        subject.model,
        subject.model.starting_point(subject.embedding),
        counted(probed, "probe", subject.say),
        subject.encoded,
        subject.config.sampling,
        seed=subject.config.seed,
        lora_ranks=options.lora_ranks,
    )
    header = ["parameters p", "dim(p)", "rms(p)", "|J|^2", "E = |J|^2/dim", "+- 95 %", "|J|/dim", "E rms^2"]
    rows = [
        [
            f"n ({subject.label})" if name == "n" else name,
            str(it.size),
            *(f"{x:.3g}" for x in (it.rms, it.squared_norm, it.value, Z_95 * it.standard_error)),
            *(f"{x:.3g}" for x in (it.norm_per_number, it.at_own_scale)),
        ]
        for name, it in found.items()
    ]
    metrics: dict[str, float] = {}
    for name, it in found.items():
        key = f"efficiency/{name.replace(', ', '_').replace(' ', '_')}"
        metrics |= {key: it.value, f"{key}/standard_error": it.standard_error}
        metrics |= {f"{key}/norm_per_number": it.norm_per_number, f"{key}/at_own_scale": it.at_own_scale}
    return Findings(header, rows, _in_words(found), metrics, {"efficiency": draw(found, subject.label)})


def _in_words(found: Mapping[str, Efficiency]) -> str:
    """How n compares with all weights."""
    n, weights = found["n"], found[WEIGHTS]
    ratio, error = n.ratio_to(weights)
    return (
        f"n against all weights: E {ratio:.3g} +- {Z_95 * error:.2g} times (95 %, {len(n.squares)} probes), "
        f"|J|/dim {n.norm_per_number / weights.norm_per_number:.3g} times, "
        f"E rms^2 {n.at_own_scale / weights.at_own_scale:.3g} times"
    )


def draw(found: Mapping[str, Efficiency], label: str) -> Image.Image:
    """The three figures of each set of parameters with their 95 % intervals, on logarithmic axes."""
    from matplotlib.figure import Figure

    names = [f"n ({label})" if name == "n" else name for name in found]
    measured = found.values()
    shares = [Z_95 * it.standard_error / it.value for it in measured]
    panels = {
        "E(p) = |J|$^2$ / dim p": ([it.value for it in measured], shares),
        "|J| / dim p": ([it.norm_per_number for it in measured], [share / 2 for share in shares]),  # of a root
        "E(p) rms(p)$^2$": ([it.at_own_scale for it in measured], shares),
    }
    figure = Figure(figsize=(11, 1.2 + 0.45 * len(found)), layout="constrained")
    for axes, (title, (values, widths)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        errors = [value * width for value, width in zip(values, widths, strict=True)]
        axes.errorbar(values, names, xerr=errors, fmt="o", capsize=4)
        axes.set(title=title, xscale="log")
        ends = [math.log10(value) for value in values if value > 0]  # an embedding of zeros has no scale of its own
        if ends:
            axes.set_xlim(10 ** math.floor(min(ends) - 0.2), 10 ** math.ceil(max(ends) + 0.2))
        axes.grid(axis="x", alpha=0.3)
    figure.get_axes()[0].invert_yaxis()
    return render(figure)
