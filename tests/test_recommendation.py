"""Starting rules by hand, what a device's memory allows, and `auto` in a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from mlops_tasks.__main__ import main
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.learning import Train
from mlops_tasks.errors import UserError
from mlops_tasks.planning import resolve
from mlops_tasks.recommendation import Case, by_samples, by_size, recommend

TINY = LlamaConfig(
    vocab_size=500, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=3, eos_token_id=None
)
RECIPE = """
name: auto
data: {source: {kind: generated, num_train: 1500}}
model: {name: auto, source: {kind: folder, path: model}}
scoring: {scorer: uniform}
train: {num_heads: 1, method: auto, learning_rate: auto, epochs: auto}
"""


@pytest.mark.parametrize(
    ("num_parameters", "method"),
    [
        (135e6, {"kind": "lora", "rank": 32}),
        (1e9, {"kind": "qlora", "rank": 16}),
        (7.6e9, {"kind": "qlora", "rank": 16}),
        (13e9, {"kind": "qlora", "rank": 8}),
    ],
)
def test_method_and_rank_follow_the_size_of_the_model(num_parameters: float, method: dict[str, Any]) -> None:
    assert by_size(int(num_parameters)).value == method


@pytest.mark.parametrize(
    ("num_samples", "rate", "epochs"), [(999, 1e-4, 10), (1000, 5e-5, 5), (10_000, 5e-5, 5), (10_001, 2e-5, 3)]
)
def test_rate_and_epochs_follow_the_number_of_problems(num_samples: int, rate: float, epochs: int) -> None:
    assert [one.value for one in by_samples(num_samples)] == [rate, epochs]


def case(memory: float) -> Case:
    return Case(TINY, Train(steps=1, num_heads=1, batch_size=16), memory=memory, length=64, chunk_rows=32)


def test_a_micro_batch_is_as_large_as_memory_allows_and_recomputes_only_where_it_must() -> None:
    roomy = case(1e9).ways["lora"]
    assert (roomy.rows, roomy.recompute) == (16, False)
    assert roomy.footprint is not None
    # Nine tenths are counted on.
    tight = case(roomy.footprint.total / 0.9 - 1).ways["lora"]
    assert (tight.rows, tight.recompute) == (8, False)
    scarce = case(roomy.smallest.total / 0.9 - 1).ways["lora"]
    assert scarce.recompute and scarce.rows >= 1
    assert case(1e3).ways["lora"].rows == 0


def test_each_setting_is_given_with_its_reason() -> None:
    found = {one.setting: one for one in recommend(case(1e9), num_samples=374)}
    assert found["train.method"].value == {"kind": "lora", "rank": 32}
    assert found["micro-batches a step"].value == 1
    assert "374 training problems, fewer than 1,000" in found["train.learning_rate"].why
    assert "weights" in found["train.micro_batch_rows"].why
    hopeless = {one.setting: one for one in recommend(case(1e3), num_samples=374)}
    assert hopeless["train.micro_batch_rows"].value is None
    assert "take a larger device" in hopeless["train.micro_batch_rows"].why


def test_the_command_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TINY.save_pretrained(tmp_path)
    arguments = ["recommend", "--model", str(tmp_path), "--memory", "1GB", "--set", "text.max_length=64"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert 'train.method: {"kind": "lora", "rank": 32}' in told and "full   " in told
    assert main([*arguments[:3], "--memory", "much"]) == UserError.exit_code


def test_plan_resolves_auto_and_the_spec_holds_what_it_came_to(tmp_path: Path, environment: Environment) -> None:
    TINY.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"pinned, not read")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    train = resolve(environment, recipe=tmp_path / "recipe.yaml").recipe.train
    assert train.method.model_dump(include={"kind", "rank"}) == {"kind": "lora", "rank": 32}
    assert (train.learning_rate, train.epochs) == (5e-5, 5)
    assert "auto" not in json.dumps(train.model_dump(mode="json"))
    with pytest.raises(
        UserError, match=r"train\.batch_size is auto, which only method, learning_rate and epochs may be"
    ):
        resolve(environment, recipe=tmp_path / "recipe.yaml", overrides=["train.batch_size=auto"])
