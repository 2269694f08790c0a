"""Tables of an evaluation as the job writes them, from given scores; with pictures where a folder is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from renege_ray.prompts.sources import prompt_id

STRANGE = "<script>alert('x')</script> & \"quotes\" </script> '; DROP TABLE prompts; -- | $x_1$ 狐 🦊"


def evaluation_table(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    *,
    seeds_per_prompt: int = 1,
    styles: Sequence[str] = ("",),
    prompts: Sequence[str] | None = None,
    images: Path | None = None,
    size: int = 32,
    noise: bool = False,
) -> pd.DataFrame:
    """One row for each method, prompt and seed.

    Args:
        scores: method -> score -> (P,), the seeds of a prompt next to each other.
        styles: in turns, prompt by prompt.
        images: the folder that a random picture of each row is written to, of `size` px a side.
        noise: pictures that cannot be compressed.
    """
    rows = []
    generator = np.random.default_rng(0)
    for method, columns in scores.items():
        for i in range(len(next(iter(columns.values())))):
            which, k = divmod(i, seeds_per_prompt)
            prompt = prompts[which] if prompts else f"prompt number {which}"
            row: dict[str, object] = {
                "prompt_id": prompt_id(prompt),
                "prompt": prompt,
                "style": styles[which % len(styles)],
                "seed": 2**60 + i,
                "pair_index": k,
                "method": method,
                "model": "toy",
                "refined_prompt": "",
                "status": "ok",
                "marks": "",
                "image": "",
            }
            row |= {f"score/{name}": float(values[i]) for name, values in columns.items()}
            if images is not None:
                row["image"] = f"{method}/{i:05d}.png"
                (images / method).mkdir(parents=True, exist_ok=True)
                side = size if noise else size // 4
                pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
                picture.save(images / str(row["image"]))
            rows.append(row)
    return pd.DataFrame(rows)


def made_up_scores(pairs: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Four methods, each better than the one before in `toy`; in `held_out` global is below handwritten."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(size=pairs)
    gains = {"null": (0.0, 0.0), "handwritten": (0.3, 0.3), "global": (0.6, 0.1), "prompt": (0.9, 0.9)}
    return {
        method: {
            "toy": hard + toy + 0.2 * generator.normal(size=pairs),
            "held_out": hard + held_out + 0.2 * generator.normal(size=pairs),
        }
        for method, (toy, held_out) in gains.items()
    }
