"""Tiny models of several architectures with random weights, and prompts for them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mlops_tasks.evaluation.decoding import Completed, Request
from mlops_tasks.model import MtpModel

NUM_TOKENS = 97
SHAPE = {
    "vocab_size": NUM_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "eos_token_id": None, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
PLAIN = {"eos_token_id": None, "pad_token_id": 0, "bos_token_id": 1}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "mistral-sliding": lambda: MistralConfig(**SHAPE, sliding_window=6),
    "gemma2-mixed": lambda: Gemma2Config(**SHAPE, sliding_window=6, head_dim=8),
    "gpt2-absolute": lambda: GPT2Config(
        vocab_size=NUM_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=128, **PLAIN
    ),
}


def model_of(config: PretrainedConfig, num_heads: int = 1) -> MtpModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
        # As initialised a model repeats its last token, and any mistake looks right: a head of its own, moved on by one.
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.roll(1, 0))
    return MtpModel(model, num_heads=num_heads, seed=0)


def requests_of(count: int, *, num_samples: int = 1) -> list[Request]:
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(2, NUM_TOKENS) for _ in range(rng.randrange(1, 30))) for _ in range(count)]
    return [
        Request(str(index), sample, prompt, 5 + 3 * index)
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]


def by_request(done: list[Completed]) -> dict[tuple[str, int], tuple[list[int], bool]]:
    return {(one.request.problem_id, one.request.sample): (one.token_ids, one.is_ended) for one in done}


def bytes_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<end>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer, **{"eos_token": "<end>", "pad_token": "<pad>", **special}
    )
    return made


def write_model(folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=256)).save_pretrained(folder)
    (tokenizer or bytes_tokenizer()).save_pretrained(folder)
