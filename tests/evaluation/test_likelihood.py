"""Bits of reference solutions, against transformers' own loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mlops_tasks.config.sources import RandomModel
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import render_prompt
from mlops_tasks.data.random_model import build
from mlops_tasks.evaluation import likelihood
from mlops_tasks.evaluation.generation import Writer, likelihoods, load
from mlops_tasks.evaluation.likelihood import Known, solution_bits
from mlops_tasks.evaluation.metrics import bits_per_byte

KNOWNS = [
    Known((1, 2, 3), (4, 5)),
    Known((9,), (8, 7, 6, 5, 4, 3)),
    Known(tuple(range(10, 30)), (31,)),
    Known((40, 41), (42, 43, 44)),
]


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


def independent_bits(model: PreTrainedModel, known: Known) -> float:
    """By transformers' own loss: the mean over the labels, in nats."""
    ids = torch.tensor([[*known.prompt_ids, *known.solution_ids]])
    labels = ids.clone()
    labels[0, : len(known.prompt_ids)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss) * len(known.solution_ids) / math.log(2)


@pytest.mark.parametrize("model", [llama(), gpt2()], ids=["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_bits_are_transformers_own_loss_whatever_the_batch(model: PreTrainedModel, batch_size: int) -> None:
    expected = [independent_bits(model, known) for known in KNOWNS]
    assert solution_bits(model, KNOWNS, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)


def test_few_logits_at_one_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    expected = solution_bits(model, KNOWNS, batch_size=8)
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 64)
    assert solution_bits(model, KNOWNS, batch_size=8) == pytest.approx(expected, rel=1e-4)


def test_a_model_that_knows_nothing_needs_the_vocabularys_bits() -> None:
    model = llama()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    assert solution_bits(model, [KNOWNS[1]], batch_size=1) == pytest.approx([6 * math.log2(64)])


def test_bits_per_byte_are_over_all_bytes_and_leave_out_what_was_not_measured() -> None:
    rows = [{"bits": 6.0, "num_bytes": 2}, {"bits": None, "num_bytes": 50}, {"bits": 2.0, "num_bytes": 2}]
    assert bits_per_byte(rows) == 2.0
    assert bits_per_byte(rows[1:2]) is None


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder = tmp_path_factory.mktemp("model")
    build(RandomModel(kind="random", hidden_size=32, num_layers=1, vocab_size=320), folder)
    return load(folder, precision="float32")


def problem(id: str, solution: str) -> Problem:
    return Problem(
        id=id, prompt="Write f.", solution=solution, tests=("assert f() == 1",), split="test", source="s", licence="l"
    )


def test_what_is_measured_is_the_solution_and_not_the_forms_end_mark(writer: Writer) -> None:
    one = problem("1", "def f():\n    return '☃'\n")
    [row] = likelihoods(writer, [one], {"1": "p"}, "begin-done-3shot", batch_size=4)
    assert row["num_bytes"] == len(one.solution.encode())
    [other] = likelihoods(writer, [one], {"1": render_prompt(one, "docstring-0shot")}, "docstring-0shot", batch_size=4)
    assert other["num_bytes"] == row["num_bytes"] and other["bits"] != row["bits"]


def test_a_solution_that_the_model_has_no_positions_for_has_no_bits(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.model.config, "max_position_embeddings", 60)
    problems = [problem("1", "def f(): return 1\n"), problem("2", "def f(): return 1\n" + "# long\n" * 40)]
    rows = likelihoods(writer, problems, {"1": "p", "2": "p"}, "docstring-0shot", batch_size=4)
    assert [row["bits"] is None for row in rows] == [False, True]


def test_a_model_that_has_learnt_needs_fewer_bits(writer: Writer, tmp_path: Path) -> None:
    one = problem("1", "def f():\n    return 1\n")
    before = likelihoods(writer, [one], {"1": "p\n"}, "docstring-0shot", batch_size=1)[0]["bits"]
    ids = torch.tensor([writer.tokenizer("p\n" + one.solution)["input_ids"]])
    optimiser = torch.optim.AdamW(writer.model.parameters(), lr=1e-2)
    for _ in range(5):
        writer.model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert likelihoods(writer, [one], {"1": "p\n"}, "docstring-0shot", batch_size=1)[0]["bits"] < 0.8 * before
