"""The pyfunc model of a negative embedding: code that MLflow stores beside the safetensors (no pickle).

It stands alone, without renege_ray, so that a registered embedding works wherever MLflow and safetensors are:

    model = mlflow.pyfunc.load_model("models:/renege_ray-toy/1")
    n = model.unwrap_python_model().negative_prompt_embeds(pipe)
    pipe(prompt, negative_prompt_embeds=n, guidance_scale=3.0)
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
    """Hands out one negative embedding n (1, L, D), to be given to diffusers as `negative_prompt_embeds`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the embedding and the text metadata of its file."""
        with safe_open(context.artifacts["embedding"], framework="pt") as file:
            (name,) = file.keys()
            self.embedding: torch.Tensor = file.get_tensor(name)
            self.metadata: dict[str, str] = file.metadata() or {}

    # MLflow reads this type hint: a DataFrame is the one that it neither warns about nor checks inputs by.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """The embedding as a float32 array (1, L, D), whatever the input: None, or a DataFrame of prompts."""
        return np.asarray(self.embedding.float().numpy())

    def negative_prompt_embeds(self, pipe: Any = None) -> "torch.Tensor":
        """The embedding (1, L, D) in the dtype and on the device of a diffusers pipeline, or as stored."""
        if pipe is None:
            return self.embedding
        return self.embedding.to(device=pipe.device, dtype=pipe.text_encoder.dtype)


set_model(NegativeEmbeddingModel())
