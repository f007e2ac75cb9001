"""The model as MLflow serves it: prompts in, completions out.

This file is kept beside the weights in MLflow and run from there, so it imports nothing of this package. It generates
greedily and says nothing about how a benchmark words its prompts or cuts its completions: that is `evaluation`'s.
"""

from __future__ import annotations

from typing import Any

import mlflow.models
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc.model import PythonModel


class Completer(PythonModel):
    """Completes each prompt of a table, one row after another."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer from the files beside this one; nothing is fetched."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        self.model = model

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A column `prompt` becomes a column `completion`, of at most `max_new_tokens` (a param) each."""
        limit = int((params or {}).get("max_new_tokens", 256))
        return pd.DataFrame({"completion": [self._complete(prompt, limit) for prompt in model_input["prompt"]]})

    def _complete(self, prompt: str, max_new_tokens: int) -> str:
        encoded = self.tokenizer(prompt, return_tensors="pt")
        padding = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )
        generated = self.model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding,
        )
        completion = generated[0, encoded["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(completion, skip_special_tokens=True))


mlflow.models.set_model(Completer())
