"""Learned embeddings as registered MLflow models, by calls that leave the global tracking URI alone."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from renege_ray.output.names import with_hash

_LONGEST = 200
MODEL_CODE = Path(__file__).with_name("embedding_model.py")


def registered_name(base_model: str) -> str:
    """`renege_ray-<base model>`, a slash as the Hub's cache writes it; what else MLflow refuses becomes a dash, and a
    piece of a hash keeps two such names apart.
    """
    whole = f"renege_ray-{base_model.replace('/', '--')}"
    name = re.sub(r"[^\w.-]+", "-", whole).strip("-")
    return name if name == whole and len(name) <= _LONGEST else with_hash(name, base_model, _LONGEST)


def log_and_register(
    client: MlflowClient, run_id: str, embedding: Path, base_model: str, metadata: Mapping[str, str], step: int
) -> None:
    """Store an embedding file with the code that hands it out, and register it as a new version.

    Args:
        embedding: its safetensors file.
        metadata: shown with the model and with its version, and found in the loaded model's metadata.
        step: the training step that the embedding is from.
    """
    model_name = registered_name(base_model)
    run = client.get_run(run_id)
    tags = {key: value[:5000] for key, value in metadata.items()}
    logged = client.create_logged_model(
        run.info.experiment_id, name="negative_embedding", source_run_id=run_id, tags=tags, params=run.data.params
    )
    description = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        metadata=dict(metadata),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        with _without_signature_warning():
            mlflow.pyfunc.save_model(
                path=folder,
                mlflow_model=description,
                python_model=str(MODEL_CODE),
                artifacts={"embedding": str(embedding)},
                # Given, because MLflow would otherwise load the model in a new process to see its imports.
                pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "safetensors", "torch")],
            )
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, models=[LoggedModelOutput(logged.model_id, step=step)])
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A server resolves models:/ID itself and refuses file paths; a local store would look the id up in the
    # store of the *global* tracking URI.
    over_http = client.tracking_uri.startswith(("http://", "https://", "databricks"))
    source = f"models:/{logged.model_id}" if over_http else logged.artifact_location
    client.create_model_version(model_name, source=source, run_id=run_id, tags=tags, model_id=logged.model_id)


@contextmanager
def _without_signature_warning() -> Iterator[None]:
    """The model takes anything, so it has no input signature: MLflow's advice to give one is noise here."""
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
