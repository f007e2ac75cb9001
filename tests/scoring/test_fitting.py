"""What value heads learn from candidates, and what the gate makes of it: property 9 of the design's list."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_model
from transformers import LlamaConfig, LlamaForCausalLM

from mlops_tasks import parts
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.learning import SoftWeights, ValueHead
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.data.tokens import Example, fold_of
from mlops_tasks.model import MtpModel
from mlops_tasks.scoring import fitting
from mlops_tasks.scoring.candidates import Rewarded, write_rewards
from mlops_tasks.scoring.critic import (
    HEADS_FILE,
    ValueNetwork,
    explained_variance,
    load_heads,
    target_states,
    token_scores,
)
from mlops_tasks.scoring.fitting import Episodes, fit, fit_critic, learn, value_loss, values_of
from mlops_tasks.scoring.gate import VERDICT_FILE, Verdict
from mlops_tasks.scoring.weights import document_weights
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

SETTINGS = ValueHead(num_folds=3, learning_rate=1e-2)
NUM_PROBLEMS, NUM_PROMPT, NUM_TARGETS = 100, 2, 8
VOCABULARY, BAD, GOOD = 12, 10, 11
PLACES = np.random.default_rng(1).integers(1, 6, NUM_PROBLEMS)


def remembering_model() -> MtpModel:
    """A Llama whose one layer looks at all tokens so far alike, so that a state knows which there were."""
    torch.manual_seed(0)
    width = 32
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=8
        )
    ).eval()  # fmt: skip
    layer: Any = base.model.layers[0]
    with torch.no_grad():
        base.model.embed_tokens.weight.normal_()
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(torch.eye(width))
        layer.self_attn.o_proj.weight.copy_(4 * torch.eye(width))
        layer.mlp.down_proj.weight.zero_()
    return MtpModel(base, num_heads=1, seed=0)


def solution(problem: int, token: int) -> Example:
    """Random tokens but for the one that decides the reward."""
    ids = np.random.default_rng(problem).integers(2, BAD, NUM_PROMPT + NUM_TARGETS)
    ids[NUM_PROMPT + PLACES[problem]] = token
    return Example(str(problem), ids, np.arange(len(ids)) >= NUM_PROMPT)


@pytest.fixture(scope="module")
def decided() -> Episodes:
    """A good and a bad solution of each problem, the good ones first; they differ in one token."""
    examples = [solution(problem, token) for token in (GOOD, BAD) for problem in range(NUM_PROBLEMS)]
    states = target_states(remembering_model(), examples, batch_rows=len(examples))
    rewards = torch.tensor([1.0, -1.0]).repeat_interleave(NUM_PROBLEMS)
    return Episodes(tuple(one.problem_id for one in examples), tuple(states), rewards)


@pytest.fixture(scope="module")
def learnt(decided: Episodes) -> tuple[list[ValueNetwork], dict[str, Any]]:
    return learn(decided, SETTINGS, seed=0)


def verdict_of(measured: dict[str, Any]) -> Verdict:
    found = {name: measured[name] for name in ("explained_variance", "position_explained_variance")}
    return Verdict(num_problems=NUM_PROBLEMS, num_folds=SETTINGS.num_folds, seed=0, **found)


def test_the_token_that_decides_the_reward_gets_the_largest_weight(
    decided: Episodes, learnt: tuple[list[ValueNetwork], dict[str, Any]]
) -> None:
    heads, _ = learnt
    for problem in range(NUM_PROBLEMS):
        head = heads[fold_of(0, str(problem), SETTINGS.num_folds)]
        scores = torch.from_numpy(token_scores(head, decided.states[problem], 1.0))
        weights = document_weights(scores, SoftWeights(kind="soft"))
        assert weights.argmax() == PLACES[problem]
        assert weights[PLACES[problem]] > 2


def test_the_gate_lets_values_pass_that_know_more_than_the_position(
    learnt: tuple[list[ValueNetwork], dict[str, Any]],
) -> None:
    _, measured = learnt
    # States up to the deciding token know nothing: of what there is to explain, that leaves the states behind it.
    known = 1 - (PLACES + 1).mean() / NUM_TARGETS
    assert 0.7 * known < measured["explained_variance"] < known
    assert abs(measured["position_explained_variance"]) < 0.01
    assert verdict_of(measured).is_used(0.05)


def test_a_fold_is_valued_by_a_head_that_saw_neither_it_nor_the_fold_that_stops(
    decided: Episodes, learnt: tuple[list[ValueNetwork], dict[str, Any]]
) -> None:
    fold = {problem_id: fold_of(0, problem_id, 3) for problem_id in decided.problem_ids}
    heads, measured = learnt
    alone = fit(decided.of({2}, fold=fold), decided.of({1}, fold=fold), SETTINGS, seed=0)
    held_out = decided.of({0}, fold=fold)
    assert values_of(heads[0], held_out).tolist() == values_of(alone, held_out).tolist()
    assert measured["by_fold"][0]["explained_variance"] == explained_variance(
        values_of(alone, held_out), held_out.returns_N()
    )


def by_length(num_problems: int) -> Episodes:
    """Long solutions are right, and nothing else tells them from the wrong ones: states are noise with the position in it."""
    generator = torch.Generator().manual_seed(0)
    lengths = [length for _ in range(num_problems) for length in (4, 12)]
    states = [torch.randn(length, 2, generator=generator) for length in lengths]
    for one in states:
        one[:, 0] = torch.arange(len(one))
    ids = tuple(str(problem) for problem in range(num_problems) for _ in range(2))
    return Episodes(ids, tuple(states), torch.tensor([-1.0, 1.0] * num_problems))


def test_the_gate_refuses_values_that_know_only_the_position() -> None:
    _, measured = learn(by_length(60), SETTINGS, seed=0)
    # Half of a long solution's states lie where no short one has any: of a variance of 3/4 that leaves 1/2.
    assert measured["position_explained_variance"] == pytest.approx(1 / 3, abs=0.04)
    assert measured["explained_variance"] > 0.2
    assert not verdict_of(measured).is_used(0.05)


def test_the_gate_refuses_values_of_noise() -> None:
    noise = by_length(60)
    generator = torch.Generator().manual_seed(1)
    states = tuple(torch.randn(6, 8, generator=generator) for _ in noise.states)
    _, measured = learn(Episodes(noise.problem_ids, states, noise.rewards_C), SETTINGS, seed=0)
    assert measured["explained_variance"] < 0.05
    assert not verdict_of(measured).is_used(0.05)


def test_the_loss_with_lambda_one_is_the_distance_of_values_from_rewards(decided: Episodes) -> None:
    some = decided.at([0, 1, NUM_PROBLEMS])
    head = ValueNetwork(some.states[0].shape[1])
    torch.nn.init.normal_(head.outer.weight, generator=torch.Generator().manual_seed(0))
    expected = np.mean(
        [(head(one) - reward).square().tolist() for one, reward in zip(some.states, some.rewards_C, strict=True)]
    )
    assert value_loss(head, some, lam=1.0).item() == pytest.approx(expected, rel=1e-5)
    assert value_loss(head, some, lam=0.5).item() != pytest.approx(expected, rel=0.01)


def test_no_gradient_flows_through_the_targets(decided: Episodes) -> None:
    one = decided.at([0])
    head = ValueNetwork(one.states[0].shape[1])
    torch.nn.init.normal_(head.outer.weight, generator=torch.Generator().manual_seed(0))
    value_loss(head, one, lam=0.0).backward()  # type: ignore[no-untyped-call]
    values = head(one.states[0]).tolist()
    # With λ = 0 the target of a state is the value of the next one, and R at the end; a value rises with the bias by 1.
    expected = np.mean([2 * (value - target) for value, target in zip(values, [*values[1:], 1.0], strict=True)])
    assert head.outer.bias.grad is not None
    assert head.outer.bias.grad.item() == pytest.approx(expected, rel=1e-4)


def test_a_head_that_never_gets_better_stays_at_nothing() -> None:
    noise = by_length(20)
    hopeless = Episodes(noise.problem_ids, noise.states, -noise.rewards_C)
    head = fit(noise, hopeless, SETTINGS, seed=0)
    assert not values_of(head, noise).any()


@pytest.mark.parametrize(
    ("values", "position", "gain", "is_used"),
    [
        (0.30, 0.20, 0.10, True),
        (0.25, 0.20, 0.05, True),
        (0.24, 0.20, 0.04, False),
        # Position heads that have learnt noise are no easier to beat than a constant.
        (0.04, -0.50, 0.04, False),
        (-0.10, -0.50, -0.10, False),
    ],
)
def test_the_gain_is_over_the_position_or_a_constant(
    values: float, position: float, gain: float, is_used: bool
) -> None:
    verdict = verdict_of({"explained_variance": values, "position_explained_variance": position})
    assert verdict.gain == pytest.approx(gain)
    assert verdict.is_used(0.0499) is is_used


def test_too_few_problems_are_refused_and_the_words_say_so(tmp_path: Path) -> None:
    verdict = verdict_of({"explained_variance": None, "position_explained_variance": None})
    assert not verdict.is_used(0.0)
    assert "100 problems have candidates of different rewards, too few for 3 folds" in verdict.in_words(0.05)
    verdict.write(tmp_path)
    assert Verdict.read(tmp_path / VERDICT_FILE) == verdict


def test_the_verdict_in_words_has_both_variances_and_what_comes_of_them() -> None:
    refused = verdict_of({"explained_variance": 0.071, "position_explained_variance": 0.052}).in_words(0.05)
    assert refused.startswith(
        "critic refused, every token weighs 1: explained variance 0.071 against 0.052 of the position"
    )
    assert refused.endswith("a gain of 0.019 where 0.05 is asked")
    assert (
        verdict_of({"explained_variance": 0.2, "position_explained_variance": 0.1})
        .in_words(0.05)
        .startswith("critic used: ")
    )


def fitted(
    environment: Environment, folder: Path, rows: list[Rewarded], *, num_folds: int = 3
) -> tuple[Attempt, dict[str, Any]]:
    """The stage on twelve problems with two candidates each."""
    store = Store.open(environment.store)

    def committed(name: str, write: Callable[[Path], object]) -> Artifact:
        draft = store.begin(f"{name}/{folder.name}")
        write(draft.folder)
        return store.commit(draft, {"metrics": {}})

    def write_data(to: Path) -> None:
        write_problems(to / "train.parquet", [problem_numbered(number) for number in range(12)])
        write_problems(to / "prompt.parquet", [])

    inputs = {
        "data": committed("data", write_data),
        "model": committed("model", lambda to: write_model(to / "model", 0)),
        "rewards": committed("rewards", lambda to: write_rewards(to / "rewards.parquet", rows)),
    }
    head = SETTINGS.model_copy(update={"num_folds": num_folds})
    config = {"value_head": head.model_dump(), "text": {"max_length": 120}, "seed": 0}
    folder.mkdir()
    attempt = Attempt(config, inputs, folder, environment, store, "key", "fit_critic/key")
    metrics = fit_critic(attempt)
    assert json.loads(json.dumps(metrics)) == metrics
    return attempt, metrics


def problem_numbered(number: int) -> Problem:
    return Problem(
        id=str(number), prompt=f"Add {number}.", solution=f"def add(a):\n    return a + {number}\n", tests=("assert add(0) != 99",),
        entry_point="add", split="train", source="test", licence="MIT",
    )  # fmt: skip


def two_candidates(number: int) -> list[Rewarded]:
    own = problem_numbered(number).solution
    return [
        Rewarded(str(number), "reference", own, 1.0, 1.0),
        Rewarded(str(number), "operator", own.replace("+", "-"), 0.0, -1.0),
    ]


ROWS = [row for number in range(12) for row in two_candidates(number)]


def test_states_that_were_put_away_before_a_kill_are_not_computed_again(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_PARTS", 0)
    first, _ = fitted(environment, tmp_path / "first", ROWS)
    assert len(load_heads(first.folder / HEADS_FILE)) == 3
    monkeypatch.setattr(fitting, "target_states", None)  # a call would fail
    again, _ = fitted(environment, tmp_path / "again", ROWS)
    for name in (HEADS_FILE, VERDICT_FILE):
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes()


def test_problems_without_signal_and_candidates_that_are_too_long_are_left_out(
    environment: Environment, tmp_path: Path
) -> None:
    dull = [replace(row, reward=0.5, standardised=0.0) for row in ROWS[2:4]]
    long = replace(ROWS[5], solution=ROWS[5].solution + "# long" * 40)
    attempt, metrics = fitted(environment, tmp_path / "one", [*ROWS[:2], *dull, ROWS[4], long, *ROWS[6:]])
    assert Verdict.read(attempt.folder / VERDICT_FILE).num_problems == metrics["num_problems"] == 11
    assert metrics["num_candidates"] == 21


def test_too_few_problems_make_no_heads(environment: Environment, tmp_path: Path) -> None:
    attempt, _ = fitted(environment, tmp_path / "one", ROWS[:4], num_folds=5)
    verdict = Verdict.read(attempt.folder / VERDICT_FILE)
    assert (verdict.num_problems, verdict.explained_variance, verdict.gain) == (2, None, None)
    assert load_heads(attempt.folder / HEADS_FILE) == []
