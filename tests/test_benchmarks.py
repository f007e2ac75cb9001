"""Claims about the benchmarks: what a ratio is, and (marker `perf`) that ours have not become much worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from transformers import LlamaConfig

from benchmarks import large_step, pairs, run_all, training_speed
from benchmarks.pairs import Measured, Result
from benchmarks.small_training import attempt, sized
from benchmarks.training_speed import transformers_trainer
from mlops_tasks.training import _Training

ROOT = Path(__file__).parents[1]
GENEROUS = 1.3


def spent(mebibytes: int, seconds: float) -> float:
    block = bytearray(mebibytes << 20)
    started = pairs.ready()
    more = bytearray(mebibytes << 20)
    time.sleep(seconds)
    assert len(block) == len(more)
    return pairs.seconds_so_far() - started + 1


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_memory_counts_from_the_end_of_the_set_up_and_each_way_has_its_own() -> None:
    large, small = (pairs.measured(partial(spent, size, 0.0)) for size in (200, 20))
    assert 190 < large.mebibytes < 230
    assert 10 < small.mebibytes < 50
    assert 1 <= small.amount < 2


def test_a_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians() -> None:
    ours, peer = ([Measured(amount, amount) for amount in amounts] for amounts in ((1, 20, 3), (2, 10, 30)))
    found = pairs.paired("x", "s", ours, peer, peer_is="y", aim=0.5)
    assert (found.ours, found.peer, found.ratio) == (3, 10, 0.5)
    assert found.is_reached


def test_an_aim_is_a_bound_from_the_better_side() -> None:
    assert Result("x", "s", 1, 1, 0.9, "y").is_reached is None
    assert Result("x", "s", 1, 1, 0.9, "y", aim=1).is_reached is True
    assert Result("x", "tokens/s", 1, 1, 0.9, "y", is_more_better=True, aim=1).is_reached is False


def test_the_table_and_the_picture_have_every_result(tmp_path: Path) -> None:
    results = [Result("a", "s", 1, 2, 0.5, "peer a", aim=0.6), Result("b", "tokens/s", 1, 2, 0.5, "peer b", is_more_better=True, aim=0.6)]  # fmt: skip
    lines = run_all.table(results).splitlines()
    assert lines[2:] == ["| a | 1 | 2 | s | 0.500 | ≤ 0.6, reached | peer a |", "| b | 1 | 2 | tokens/s | 0.500 | ≥ 0.6, missed | peer b |"]  # fmt: skip
    run_all.picture(results, tmp_path / "a.svg")
    run_all.picture(results, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"#2a7f4f" in (tmp_path / "a.svg").read_bytes()


def test_a_step_of_a_large_model_is_measured_beside_the_trainer_in_a_tiny_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(large_step, "peers", lambda: {"trainer": (transformers_trainer, "transformers Trainer")})
    tiny = ["--width=64", "--layers=1", "--inner=64", "--vocabulary=640", "--batch=2", "--steps=1", "--rounds=1"]
    lines = large_step.results(large_step.arguments([*tiny, "--precision=float32", "--peak-teraflops=1"]))
    tokens, _, share = lines
    assert [one.name for one in lines] == ["large step", "large step: memory", "large step: share of the device's peak"]
    assert tokens.ours > 0 and tokens.peer > 0 and tokens.ratio == pytest.approx(share.ratio)


def test_no_gradient_is_held_when_memory_begins_to_count(tmp_path: Path) -> None:
    sizes = sized(None, ["--width=32", "--layers=1", "--vocabulary=640", "--batch=2", "--steps=1"])
    training = _Training(attempt(sizes, tmp_path))
    assert training_speed.warmed_up(training) > 0
    assert training.progress.step == 1
    assert all(one.grad is None for one in training.model.parameters())


def test_operations_of_a_token_are_six_a_weight_and_attention_to_half_a_document() -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
    )  # fmt: skip
    weights = 100 * 8 + 2 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 8
    # Of each layer: 10 tokens before on average, a product of 8 with the keys and one with the values, forward and twice back.
    attention = 2 * (10 * 8 * 2 * 2 * 3)
    assert large_step.operations(config, length=20, target_share=1) == 6 * weights + attention
    # The output layer of 100 x 8 is asked at every fourth token.
    assert large_step.operations(config, length=20, target_share=0.25) == 6 * (weights - 600) + attention


@pytest.mark.perf
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("WMTP_PERF" not in os.environ, reason="takes minutes and an idle machine; WMTP_PERF=1 asks for it")
def test_no_ratio_is_much_worse_than_the_accepted_one(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "benchmarks.run_all"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    )
    accepted = json.loads(run_all.ACCEPTED.read_text())
    found = {one.name: one for name in run_all.runs(1) for one in run_all.read(name)}
    assert found.keys() == accepted.keys()
    worse = {
        name: (one.ratio, accepted[name])
        for name, one in found.items()
        if (accepted[name] / one.ratio if one.is_more_better else one.ratio / accepted[name]) > GENEROUS
    }
    assert worse == {}
