"""Everything that a training run needs to go on exactly where it was, and how that is kept on disk.

A checkpoint is a folder of two files: `tensors.safetensors`, and `state.json` with the SHA-256 of the first, which
tells a whole checkpoint from a torn one, also where a storage service copies the files one by one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.sampling.images import Evaluation, to_bytes
from renege_ray.training.early_stop import ValidationPoint

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
_FORMAT = 2


class TornCheckpointError(RuntimeError):
    """A checkpoint folder is incomplete or its content is not what was written."""


@dataclass(frozen=True)
class BestEmbedding:
    """The embedding (1, L, D) with the highest mean training reward on the validation pairs, as stored."""

    prompt_embeds: Tensor
    step: int
    train_reward: float


@dataclass(frozen=True)
class TrainingState:
    """The state after `step` updates. Tensors are on the CPU."""

    step: int
    ascent: dict[str, Tensor]
    """`Ascent.state()`."""
    best: BestEmbedding
    history: tuple[ValidationPoint, ...]
    handwritten: str
    candidate_rewards: dict[str, float]
    baselines: Evaluation
    """Of the null and the handwritten negative on the validation pairs, made once at the start."""
    fingerprint: str
    invalid_in_a_row: int = 0
    """Samples without a finite reward at the end of the sequence of samples."""
    invalid_samples: int = 0
    micro_batch_size: int = 0
    threads: int = 0
    """Torch threads of a worker: the order of float sums on a CPU depends on it, so a resumed run uses as many."""
    world_size: int = 1
    seconds: float = 0.0
    test: Evaluation | None = None
    """Null, handwritten and global (the best one) on the held-out pairs, once the run has ended."""

    @property
    def last(self) -> Tensor:
        """The embedding (1, L, D) float32 after the last update, averaged over the updates if the run averages."""
        return self.ascent["averaged"]

    def write_files(self, directory: Path) -> None:
        """Write the two files into an existing folder, the one with the hash last."""
        evaluations = {"baselines": self.baselines} | ({"test": self.test} if self.test else {})
        tensors = {f"ascent/{name}": tensor for name, tensor in self.ascent.items()}
        tensors["best"] = self.best.prompt_embeds
        for name, evaluation in evaluations.items():
            tensors |= {f"{name}/{method}": to_bytes(images) for method, images in evaluation.images.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / TENSORS_FILE)
        record: dict[str, Any] = {
            "format": _FORMAT,
            "tensors_sha256": _sha256(directory / TENSORS_FILE),
            "best": {"step": self.best.step, "train_reward": self.best.train_reward},
            "history": [asdict(point) for point in self.history],
        }
        record |= {name: evaluation.plain() for name, evaluation in evaluations.items()}
        record |= {name: getattr(self, name) for name in _PLAIN_FIELDS}
        (directory / STATE_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "TrainingState":
        """Read a checkpoint folder.

        Raises:
            TornCheckpointError: it is not what was written.
            UserError: another version of the package has written it.
        """
        try:
            record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise UserError(
                    f"--resume: {directory} is a checkpoint of format {record['format']}, and this version reads "
                    f"format {_FORMAT}; go on with the version that has written it, or start anew in another folder"
                )
            if record["tensors_sha256"] != _sha256(directory / TENSORS_FILE):
                raise TornCheckpointError(f"{directory}: {TENSORS_FILE} is not the file that {STATE_FILE} describes")
            tensors = load_file(directory / TENSORS_FILE)
            return cls(
                ascent=_below("ascent/", tensors),
                baselines=Evaluation.from_plain(record["baselines"], _below("baselines/", tensors)),
                test=Evaluation.from_plain(record["test"], _below("test/", tensors)) if "test" in record else None,
                best=BestEmbedding(tensors["best"], **record["best"]),
                history=tuple(ValidationPoint(**point) for point in record["history"]),
                **{name: record[name] for name in _PLAIN_FIELDS},
            )
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise TornCheckpointError(f"{directory}: {error}") from error


_PLAIN_FIELDS = (
    "step", "handwritten", "candidate_rewards", "fingerprint", "invalid_in_a_row", "invalid_samples",
    "micro_batch_size", "threads", "world_size", "seconds",
)  # fmt: skip


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
