"""What a training leaves beside its weights for people to look at: how tokens were weighed, and how sure each head is.

All ranks make it, for each may hold a part of the model. The pages that show it are `report`'s.

Shape letters: H head, N bins; 3 sums a bin.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlops_tasks import distributed, precision
from mlops_tasks.calibration import Bin, bins_of, no_sums
from mlops_tasks.corpus import Corpus
from mlops_tasks.data.tokens import Example, Row
from mlops_tasks.objective import WeightedLoss

NUM_WEIGHED_EXAMPLES = 64
NUM_CALIBRATED_EXAMPLES = 256
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")


class Portrait:
    """Of the model that is kept.

    Args:
        loss: on this rank's device.
        corpus: what it has learnt from.
    """

    def __init__(self, loss: WeightedLoss, corpus: Corpus) -> None:
        self._loss, self._corpus = loss, corpus

    @torch.no_grad()
    def calibration(self) -> list[list[Bin]]:
        """Of the model that is kept, on some validation problems."""
        sums_H3N = no_sums(self._corpus.lesson.train.num_heads)
        for example in self._corpus.validation[:NUM_CALIBRATED_EXAMPLES]:
            micro = self._corpus.micro_batch([Row((example,))], None).to(distributed.device())
            with precision.autocast(distributed.device(), self._corpus.lesson.train.precision):
                sums_H3N += self._loss.sureness_of(micro)
        return bins_of(sums_H3N)

    @torch.no_grad()
    def weights(self) -> dict[str, Any]:
        """How the weights of some examples are spread with the final model, all of them token by token."""
        examples = self._corpus.examples[:NUM_WEIGHED_EXAMPLES]
        weights = {example.problem_id: self._weights_of(example) for example in examples}
        of_targets = np.concatenate([weights[example.problem_id][example.is_target] for example in examples])
        counts, edges = np.histogram(of_targets, bins=30, range=(0, max(1.0, float(of_targets.max()))))
        return {
            "histogram": {"edges": edges.round(4).tolist(), "counts": counts.tolist()},
            "examples": [
                {
                    "problem_id": example.problem_id,
                    "tokens": [self._corpus.tokenizer.decode([one]) for one in example.token_ids.tolist()],
                    "weights": [
                        round(float(weight), 4) if is_target else None
                        for weight, is_target in zip(weights[example.problem_id], example.is_target, strict=True)
                    ],
                }
                for example in examples
            ],
        }

    def _weights_of(self, example: Example) -> npt.NDArray[np.float32]:
        micro = self._corpus.micro_batch([Row((example,))], self._corpus.values).to(distributed.device())
        with precision.autocast(distributed.device(), self._corpus.lesson.train.precision):
            found: npt.NDArray[np.float32] = self._loss.weights_of(micro)[0].cpu().numpy()
        return found


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what a model's folder holds beside weights and configuration, so that the tokenizer stays the same byte for byte."""
    for file in sorted(source.iterdir()):
        is_weights = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if file.is_file() and not is_weights and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
