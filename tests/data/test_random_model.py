"""The small random model and its tokenizer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlops_tasks.config.sources import GeneratedData, RandomModel
from mlops_tasks.data.generated import generate_problems
from mlops_tasks.data.random_model import build

SMALL = RandomModel(kind="random", hidden_size=32, num_layers=1, vocab_size=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build(SMALL, folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_transformers_loads_it_in_the_size_asked_for(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)
    assert model.config.vocab_size == len(tokenizer) == 400
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_another_process_builds_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mlops_tasks.config.sources import RandomModel; from mlops_tasks.data.random_model import build;"
        "build(RandomModel.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program, SMALL.model_dump_json(), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    assert digests(tmp_path) == digests(folder)


def test_the_seed_changes_the_weights_only_and_leaves_torchs_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build(SMALL.model_copy(update={"seed": 1}), tmp_path)
    assert torch.equal(torch.rand(1), expected)
    before, after = digests(folder), digests(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}


def test_any_text_comes_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ('def f(x):\n    return "ß € \\n"\n', "a , b . c 's  \t x", " 12 345\r\n", "日本"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_stands_alone_whatever_the_vocabulary(folder: Path) -> None:
    split = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("x > 123, 45")] == ["x", "Ġ>Ġ", "1", "2", "3", ",Ġ", "4", "5"]


def test_words_of_the_generated_problems_are_few_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = GeneratedData(kind="generated", num_train=50, num_validation=1, num_test=1, seed=5)
    texts = [problem.prompt for problem in generate_problems(source)]
    assert sum(len(tokenizer(text)["input_ids"]) for text in texts) < 0.6 * sum(map(len, texts))
