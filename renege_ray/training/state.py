"""Everything that a training run needs to go on exactly where it was, and how that is kept on disk.

A checkpoint is a folder of two files: `tensors.safetensors`, and `state.json` with the SHA-256 of the first.
Both are written to a temporary folder that is then renamed, and the hash tells a whole checkpoint from a torn
one, also where a storage service copies the files one by one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from renege_ray.training.early_stop import ValidationPoint

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
_FORMAT = 1


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
    """The state after `step` updates. Tensors are on the CPU.

    ascent: `Ascent.state()`. baselines: tensors of the evaluation of the null and the handwritten negative,
        made once at the start. invalid_in_a_row: samples without a finite reward at the end of the sequence
        of samples. threads: torch threads of a worker (the order of float sums on a CPU depends on it, so a
        resumed run uses as many).
    """

    step: int
    ascent: dict[str, Tensor]
    best: BestEmbedding
    history: tuple[ValidationPoint, ...]
    handwritten: str
    candidate_rewards: dict[str, float]
    baselines: dict[str, Tensor]
    fingerprint: str
    invalid_in_a_row: int = 0
    invalid_samples: int = 0
    micro_batch_size: int = 0
    threads: int = 0
    world_size: int = 1
    seconds: float = 0.0
    finished: bool = field(default=False)

    def save(self, directory: Path) -> None:
        """Write the checkpoint folder; it appears under its name only when it is complete."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            self.write_files(temporary)
            if directory.exists():
                shutil.rmtree(directory)
            os.replace(temporary, directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def write_files(self, directory: Path) -> None:
        """Write the two files into an existing folder, the one with the hash last."""
        tensors = {f"ascent/{name}": tensor for name, tensor in self.ascent.items()}
        tensors |= {f"baseline/{name}": tensor for name, tensor in self.baselines.items()}
        tensors["best"] = self.best.prompt_embeds
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / TENSORS_FILE)
        record: dict[str, Any] = {
            "format": _FORMAT,
            "tensors_sha256": _sha256(directory / TENSORS_FILE),
            "best": {"step": self.best.step, "train_reward": self.best.train_reward},
            "history": [asdict(point) for point in self.history],
        }
        record |= {name: getattr(self, name) for name in _PLAIN_FIELDS}
        (directory / STATE_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "TrainingState":
        """Read a checkpoint folder. Raises TornCheckpointError where it is not what was written."""
        try:
            record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise TornCheckpointError(f"{directory}: checkpoint format {record['format']}, expected {_FORMAT}")
            if record["tensors_sha256"] != _sha256(directory / TENSORS_FILE):
                raise TornCheckpointError(f"{directory}: {TENSORS_FILE} is not the file that {STATE_FILE} describes")
            tensors = load_file(directory / TENSORS_FILE)
            return cls(
                ascent=_below("ascent/", tensors),
                baselines=_below("baseline/", tensors),
                best=BestEmbedding(tensors["best"], **record["best"]),
                history=tuple(ValidationPoint(**point) for point in record["history"]),
                **{name: record[name] for name in _PLAIN_FIELDS},
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise TornCheckpointError(f"{directory}: {error}") from error


_PLAIN_FIELDS = (
    "step", "handwritten", "candidate_rewards", "fingerprint", "invalid_in_a_row", "invalid_samples",
    "micro_batch_size", "threads", "world_size", "seconds", "finished",
)  # fmt: skip


def newest_intact(directories: Iterable[Path]) -> tuple[Path, TrainingState] | None:
    """The checkpoint with the most steps among those that can be read, or None. Torn ones are passed over."""
    newest: tuple[Path, TrainingState] | None = None
    for directory in directories:
        try:
            state = TrainingState.load(directory)
        except TornCheckpointError:
            continue
        if newest is None or (state.step, state.finished) >= (newest[1].step, newest[1].finished):
            newest = (directory, state)
    return newest


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
