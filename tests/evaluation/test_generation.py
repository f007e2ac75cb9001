"""The stage `generate` with a small random model, and where a completion's text ends."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import RandomModel
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.data.prompts import prompts_sha256, render_prompt
from mlops_tasks.data.random_model import build
from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.decoding import Completed, Request
from mlops_tasks.evaluation.generation import _row, _StopWatch, generate, load
from mlops_tasks.model import MtpModel
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Store

CONFIG: dict[str, Any] = {
    "protocol": "docstring-0shot", "num_samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 12,
    "precision": "float32", "problems": {"split": "test", "skip": 0, "limit": None}, "seed": None,
}  # fmt: skip


def problem(number: int, **changes: Any) -> Problem:
    fields = {
        "id": str(number), "prompt": f"Write a function to add {number}.", "solution": f"def add(x):\n    return x + {number}\n",
        "tests": (f"assert add(1) == {1 + number}",), "entry_point": "add", "split": "test", "source": "made", "licence": "CC0-1.0",
    }  # fmt: skip
    return Problem(**{**fields, **changes})


PROBLEMS = tuple(problem(number) for number in (9, 10, 11))
SHOTS = tuple(problem(number, split="prompt") for number in (2, 3, 4))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build(RandomModel(kind="random", hidden_size=32, num_layers=1, vocab_size=320), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder)
    return loaded


def attempt_of(
    environment: Environment, model_folder: Path, folder: Path, *, with_heads: bool = False, **changes: Any
) -> Attempt:
    store = Store.open(environment.store)
    data, model = store.begin("pull/d"), store.begin("pull/m")
    write_problems(data.folder / "test.parquet", PROBLEMS)
    write_problems(data.folder / "prompt.parquet", SHOTS)
    if with_heads:
        MtpModel.load(model_folder, num_heads=3, seed=0).save(model.folder)
    shutil.copytree(model_folder, model.folder / "model", dirs_exist_ok=True)
    inputs = {"data": store.commit(data, {}), "model": store.commit(model, {})}
    folder.mkdir()
    return Attempt({**CONFIG, **changes}, inputs, folder, environment, store, "k", "generate/k")


def test_each_problem_gets_its_completions_in_order(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    attempt = attempt_of(environment, model_folder, tmp_path / "out", num_samples=3, temperature=1.0, seed=5)
    metrics = generate(attempt)
    rows = pq.read_table(attempt.folder / "completions.parquet").to_pylist()
    assert [(row["problem_id"], row["sample"]) for row in rows] == [
        (one.id, sample) for one in PROBLEMS for sample in range(3)
    ]
    prompts = [render_prompt(one, "docstring-0shot") for one in PROBLEMS]
    assert [row["prompt"] for row in rows[::3]] == prompts
    assert all(1 <= row["num_tokens"] <= 12 or row["stopped"] for row in rows)
    assert {name: metrics[name] for name in ("protocol", "num_samples", "temperature", "top_p", "prompt_sha256")} == {
        "protocol": "docstring-0shot",
        "num_samples": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "prompt_sha256": prompts_sha256(prompts),
    }
    assert metrics["tokens"] == sum(row["num_tokens"] for row in rows)
    json.dumps(metrics, allow_nan=False)


def test_the_same_attempt_yields_the_same_bytes(environment: Environment, model_folder: Path, tmp_path: Path) -> None:
    files = []
    for name, batch_size in (("a", 1), ("b", 8)):
        resources = environment.generate.model_copy(update={"batch_size": batch_size})
        other = environment.model_copy(update={"generate": resources, "store": str(tmp_path / f"store-{name}")})
        attempt = attempt_of(other, model_folder, tmp_path / name, num_samples=2, temperature=0.8, top_p=0.9, seed=1)
        generate(attempt)
        files.append((attempt.folder / "completions.parquet").read_bytes())
    assert files[0] == files[1]


def test_heads_beside_the_model_guess_and_change_no_completion(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    found = {}
    for mode in ("always", "never"):
        resources = environment.generate.model_copy(update={"speculation": mode})
        other = environment.model_copy(update={"generate": resources, "store": str(tmp_path / f"store-{mode}")})
        attempt = attempt_of(other, model_folder, tmp_path / mode, with_heads=True, max_new_tokens=40)
        metrics = generate(attempt)
        found[mode] = (attempt.folder / "completions.parquet").read_bytes()
        assert (metrics["acceptance_length"] is not None) == (mode == "always")
        assert (metrics["speculated_share"] > 0) == (mode == "always")
        assert metrics["tokens_per_second"] > 0
    assert found["always"] == found["never"]


def test_the_shots_come_from_the_prompt_split_and_limit_counts_by_number(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    attempt = attempt_of(
        environment, model_folder, tmp_path / "out", protocol="begin-done-3shot", problems={"split": "test", "limit": 2}
    )
    generate(attempt)
    rows = pq.read_table(attempt.folder / "completions.parquet").to_pylist()
    assert [row["problem_id"] for row in rows] == ["9", "10"]
    assert rows[0]["prompt"] == render_prompt(PROBLEMS[0], "begin-done-3shot", SHOTS)


def test_a_completion_ends_where_the_model_has_no_positions_left(
    environment: Environment, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = attempt_of(
        environment, with_positions(model_folder, tmp_path / "small", 50), tmp_path / "out", max_new_tokens=40
    )
    generate(attempt)
    rows = pq.read_table(attempt.folder / "completions.parquet").to_pylist()
    assert all(0 < row["num_tokens"] < 40 for row in rows)
    assert "3 prompts leave less than 40 tokens of the model's 50 positions" in caplog.text


def test_a_prompt_longer_than_the_model_is_refused(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    attempt = attempt_of(environment, with_positions(model_folder, tmp_path / "small", 10), tmp_path / "out")
    with pytest.raises(UserError, match=r"The prompt of problem 9 has \d+ tokens .* takes 10 in all"):
        generate(attempt)


def with_positions(model_folder: Path, folder: Path, positions: int) -> Path:
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return folder


def test_a_folder_without_a_model_is_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer that transformers can load"):
        load(tmp_path, precision="float32")
    shutil.copytree(model_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="holds no causal language model that transformers can load"):
        load(tmp_path / "bare", precision="float32")


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"lacks \d+ of its weights, model.layers.1"):
        load(tmp_path / "model", precision="float32")


def test_a_model_writes_in_the_precision_that_is_asked_for_whatever_it_was_saved_in(
    tmp_path: Path, model_folder: Path
) -> None:
    half = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "half")
    for folder in (model_folder, tmp_path / "half"):
        assert load(folder, precision="float32").model.dtype == torch.float32
        assert load(folder, precision="bfloat16").model.dtype == torch.bfloat16


def completed(tokenizer: PreTrainedTokenizerBase, text: str, *, is_ended: bool = False) -> Completed:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("prompt\n", add_special_tokens=False)["input_ids"]
    return Completed(Request("1", 0, tuple(prompt), 99), ids, is_ended)


@pytest.mark.parametrize(
    ("text", "completion", "stopped"),
    [
        ("def f(x):\n    return x\n\nassert f(1)", "def f(x):\n    return x\n", True),
        ("def f(x):\n    if x:\n        print(x)\n", "def f(x):\n    if x:\n        print(x)\n", False),
        ("class A: pass\nclass B: pass", "class A: pass", True),
        ("    return 'é — ☃'\nprint(1)", "    return 'é — ☃'", True),
        ("def f", "def f", False),
    ],
)
def test_text_is_cut_at_the_first_stop_string(
    tokenizer: PreTrainedTokenizerBase, text: str, completion: str, stopped: bool
) -> None:
    row = _row(tokenizer, {"1": "prompt\n"}, completed(tokenizer, text), "docstring-0shot")
    assert (row["completion"], row["stopped"]) == (completion, stopped)


def test_an_end_of_sequence_counts_as_stopped(tokenizer: PreTrainedTokenizerBase) -> None:
    done = completed(tokenizer, "def f", is_ended=True)
    assert _row(tokenizer, {"1": "prompt\n"}, done, "docstring-0shot")["stopped"]


def test_a_stop_string_is_noticed_with_its_last_token_and_not_before(tokenizer: PreTrainedTokenizerBase) -> None:
    watch = _StopWatch(tokenizer, "begin-done-3shot")
    ids = tokenizer("def f(x):\n    return x\n[DONE]\n", add_special_tokens=False)["input_ids"]
    first = next(count for count in range(len(ids) + 1) if watch(ids[:count]))
    assert "[DONE]" in tokenizer.decode(ids[:first])
    assert "[DONE]" not in tokenizer.decode(ids[: first - 1])


KILLED = """
import os, pickle, signal, sys
from mlops_tasks import parts
from mlops_tasks.evaluation.generation import generate
parts.SECONDS_BETWEEN_PARTS = 0.0
seen = []
def die(row):
    seen.append(row)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
generate(pickle.load(open(sys.argv[1], "rb")), on_row=die)
"""


def test_a_killed_stage_goes_on_where_it_was_and_ends_with_the_bytes_of_an_unbroken_one(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    settings = {"num_samples": 3, "temperature": 0.8, "seed": 3}
    whole = environment.model_copy(update={"store": str(tmp_path / "whole")})
    unbroken = attempt_of(whole, model_folder, tmp_path / "unbroken", **settings)
    generate(unbroken)
    attempt = attempt_of(environment, model_folder, tmp_path / "broken", **settings)
    (tmp_path / "attempt").write_bytes(pickle.dumps(attempt))
    # The row that it dies in is not put away yet: 4 are there, then 4 and 2.
    for dies_at in ("5", "7"):
        ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "attempt"), dies_at], check=False)
        assert ended.returncode == -signal.SIGKILL
    told: list[Mapping[str, Any]] = []
    metrics = generate(attempt, on_row=told.append)
    assert metrics["num_resumed"] == 6
    assert len(told) == 9 and metrics["tokens"] == sum(row["num_tokens"] for row in told)
    for name in ("completions.parquet", "likelihoods.parquet"):
        assert (attempt.folder / name).read_bytes() == (unbroken.folder / name).read_bytes()


def test_problems_that_the_protocol_cannot_ask_for_are_refused(
    environment: Environment, model_folder: Path, tmp_path: Path
) -> None:
    attempt = attempt_of(environment, model_folder, tmp_path / "out", protocol="codecontests-stdio")
    with pytest.raises(
        UserError, match=r"codecontests-stdio asks for stdio problems, and problem 9 is of the kind asserts"
    ):
        generate(attempt)


def test_a_chat_ends_with_its_block(tokenizer: PreTrainedTokenizerBase) -> None:
    watch = _StopWatch(tokenizer, "chat")
    ids = tokenizer("Sure:\n```python\nx = 1\n```\nmore", add_special_tokens=False)["input_ids"]
    first = next(count for count in range(len(ids) + 1) if watch(ids[:count]))
    assert tokenizer.decode(ids[:first]).rstrip("\n") == "Sure:\n```python\nx = 1\n```"
