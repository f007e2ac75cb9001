"""A small Llama with random weights, and a byte-level BPE for it: something to learn on in a minute.

Owns the shape and the tokenizer; both are functions of the settings alone, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlops_tasks.config.sources import GeneratedData, RandomModel
from mlops_tasks.data.generated import generate_problems
from mlops_tasks.data.protocols import docstring_0shot

_HEAD_DIM = 32
# Three and five times the usual: at this width a model then learns to copy numbers in half the steps.
_INITIAL_STD = 0.06
_INITIAL_EMBEDDING_STD = 0.1
_MAX_POSITIONS = 2048
_END, _PAD = "<|endoftext|>", "<|pad|>"
_CORPUS = GeneratedData(kind="generated", num_train=2000, num_validation=1, num_test=1, seed=0)

# Digits stand alone, so that a number is copied digit by digit; punctuation takes the blank before a digit along.
_PIECES = r"\d| ?\p{L}+| ?[^\s\p{L}\d]+(?: (?=\d))?|\s+(?!\S)|\s+"


def build(source: RandomModel, folder: Path) -> None:
    """Write weights, configuration and tokenizer as `save_pretrained` does."""
    tokenizer = _tokenizer(source.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.hidden_size,
        intermediate_size=3 * source.hidden_size,
        num_hidden_layers=source.num_layers,
        num_attention_heads=source.hidden_size // _HEAD_DIM,
        num_key_value_heads=source.hidden_size // _HEAD_DIM,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_STD,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.weight, std=_INITIAL_EMBEDDING_STD)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END, _PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    problems = generate_problems(_CORPUS)
    texts = [docstring_0shot.render(problem) + problem.solution for problem in problems]
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=bpe,
        eos_token=_END,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=_MAX_POSITIONS,
    )
