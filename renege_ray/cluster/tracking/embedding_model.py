"""The pyfunc model of a negative embedding: code that MLflow stores beside the safetensors (no pickle).

It stands alone, without renege_ray, so that a registered embedding works wherever MLflow and safetensors are:

    model = mlflow.pyfunc.load_model("models:/renege_ray-toy/1")
    pipe(prompt, **model.unwrap_python_model().arguments(pipe), guidance_scale=3.0)
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors import safe_open

if TYPE_CHECKING:
    import torch


class NegativeEmbeddingModel(PythonModel):
    """Hands out the tensors of one negative embedding, by the names of diffusers' keyword arguments."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the embedding and the text metadata of its file."""
        with safe_open(context.artifacts["embedding"], framework="pt") as file:
            self.tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.metadata: dict[str, str] = file.metadata() or {}

    # MLflow reads this type hint: a DataFrame is the one that it neither warns about nor checks inputs by.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """n as a float32 array (1, L, D), whatever the input: None, or a DataFrame of prompts."""
        return np.asarray(self.negative_prompt_embeds().float().numpy())

    def negative_prompt_embeds(self, pipe: Any = None) -> "torch.Tensor":
        """n (1, L, D) in the dtype and on the device of a diffusers pipeline, or as stored."""
        return self.arguments(pipe)["negative_prompt_embeds"]

    def arguments(self, pipe: Any = None) -> "dict[str, torch.Tensor]":
        """All tensors, for one prompt, in the dtype and on the device of a diffusers pipeline, or as stored."""
        if pipe is None:
            return self.tensors
        dtype = pipe.text_encoder.dtype
        return {
            name: tensor.to(pipe.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.tensors.items()
        }


set_model(NegativeEmbeddingModel())
