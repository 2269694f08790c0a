"""Transfer: does an embedding that was learned with one model beat the best handwritten negative of another?

    python -m benchmarks.bench_transfer outputs/RUN/negative_embedding.safetensors [--model toy2] [--pairs 512]

The handwritten negative is the best of the preset's candidates by the training reward on the other model's own
validation pairs. Null, handwritten and the embedding are then compared on the same held-out pairs, by all scores.
"""

import argparse
import json
import time

import torch

from renege_ray.config.run import ModelConfig, load_preset
from renege_ray.models.load import load_model
from renege_ray.prompts.sources import load_splits
from renege_ray.rewards.load import load_scorers
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import evaluate, make_pairs
from renege_ray.sampling.negative import read_start


def main() -> None:
    """Prints the choice, then a line of JSON for each score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedding")
    parser.add_argument("--model", default="toy2")
    parser.add_argument("--pairs", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config, began = load_preset("toy"), time.monotonic()
    other = ModelConfig(id=given.model, dtype="float32")
    learned = read_start(given.embedding, "embedding", config.model_copy(update={"model": other}))
    model = load_model(other)
    encoded = EncodedPrompts(model)
    sets = load_splits({split: getattr(config.prompts, split) for split in ("train", "validation", "held_out")})
    (train,) = load_scorers(config.rewards.train)
    candidates = {text: encoded([text]) for text in config.prompts.handwritten}
    pairs = make_pairs(sets["validation"].prompts, config.validation.num_prompts, config.seed)
    chosen = evaluate(model, candidates, pairs, list(load_scorers([train]).values()), config.sampling, encoded=encoded)
    best = max(candidates, key=lambda text: chosen.mean(text, train))
    print(f"handwritten: {best!r}, by {len(pairs)} validation pairs")
    negatives = {"null": model.null_embedding(), "handwritten": candidates[best], "global": learned.packed(encoded)}
    scorers = load_scorers([train, *config.rewards.held_out, *config.rewards.judges])
    pairs = make_pairs(sets["held_out"].prompts, given.pairs, config.seed)
    found = evaluate(model, negatives, pairs, list(scorers.values()), config.sampling, encoded=encoded)
    for score in found.scores["null"]:
        means = {name: round(found.mean(name, score), 4) for name in negatives}
        wins = round(found.win_rate("global", "handwritten", score), 4)
        print(json.dumps({"score": score, **means, "wins of global over handwritten": wins}))
    print(f"{len(pairs)} pairs, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
