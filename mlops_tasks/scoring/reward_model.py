"""Rewards by a model: sequence classification with one label, as transformers has it.

Owns how a task and an answer become its input: by its tokenizer's chat template where it has one, as reward models are trained,
else as the pair that its tokenizer makes of two texts where it has a separator, and one behind the other where not. Which model is
asked about what is said by `rewards`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from mlops_tasks.data.tokens import encode_plain
from mlops_tasks.errors import DataError, Unfit, UserError
from mlops_tasks.logs import watched
from mlops_tasks.machine import accelerator
from mlops_tasks.pretrained import load_tokenizer
from mlops_tasks.store import Artifact

Text = tuple[str, str]
"""What is asked and what is answered."""


@torch.no_grad()
def model_rewards(artifact: Artifact, texts: Sequence[Text]) -> list[float]:
    """What a reward model says of answers, in their order.

    Args:
        artifact: with a folder `model`, as `save_pretrained` of model and tokenizer writes it.

    Raises:
        UserError: it is no model for sequence classification with one label, or lacks weights.
        Unfit: an answer is longer than it takes.
        DataError: a reward is not finite.
    """
    folder = artifact.folder("model")
    tokenizer, model = load_tokenizer(folder), load_reward_model(folder)
    # Longer ones some models answer with an error of their own, or with nonsense.
    limit = min(
        tokenizer.model_max_length, getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    )
    segments = {"token_type_ids"} & inspect.signature(model.forward).parameters.keys()
    rewards = []
    # One a forward: where padding lies, and whether a model finds the last token behind it, differs between architectures.
    for text in watched(texts, "rewards", len(texts), unit="answer"):
        encoded = _encoded(text, tokenizer)
        if encoded["input_ids"].shape[1] > limit:
            raise Unfit(
                f"The answer {text[1][:80]!r} has {encoded['input_ids'].shape[1]} tokens with its task, and the reward model {artifact.uri} takes "
                f"{limit}. Set scoring.reward.model to one that takes more, or lower text.max_length and evaluation.max_new_tokens."
            )
        taken = {name: value.to(model.device) for name, value in encoded.items() if name in ("input_ids", *segments)}
        reward = float(model(**taken).logits[0, 0])
        if not abs(reward) < float("inf"):
            raise DataError(
                f"The reward model {artifact.uri} gives the answer {text[1][:80]!r} the reward {reward}. Its weights are broken: take "
                "another model."
            )
        rewards.append(reward)
    return rewards


def load_reward_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, in float32, on the accelerator and in evaluation mode.

    Raises:
        UserError: it is no model for sequence classification with one label, or lacks weights.
    """
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder} holds no model for sequence classification that transformers can load: {error}. Set scoring.reward.model to a "
            "reward model, as `save_pretrained` of model and tokenizer wrote it."
        ) from error
    model, notes = loaded
    if notes["missing_keys"] or model.config.num_labels != 1:
        # transformers fills missing weights with random numbers: every language model would be a reward model.
        missing = ", ".join(sorted(notes["missing_keys"])[:3]) or "none"
        raise UserError(
            f"The model in {folder} has {model.config.num_labels} labels and lacks the weights {missing}. A reward model has one label and "
            "all its weights: set scoring.reward.model to one."
        )
    whole: PreTrainedModel = model.eval().to(accelerator())
    return whole


def _encoded(text: Text, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tensor]:
    asked, answered = text
    if tokenizer.chat_template:
        said = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], tokenize=False
        )
        chat: Mapping[str, Tensor] = tokenizer(said, add_special_tokens=False, return_tensors="pt")
        return chat
    if tokenizer.sep_token is not None:
        pair: Mapping[str, Tensor] = tokenizer(asked, answered, split_special_tokens=True, return_tensors="pt")
        return pair
    # The pair of a decoder's tokenizer begins twice.
    ids = [token for one in encode_plain([asked, answered], tokenizer) for token in one]
    return {"input_ids": torch.tensor([ids])}
