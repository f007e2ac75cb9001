"""Property 9 of the design's list: temporal differences, advantages, the states that a value sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, NUM_TOKENS, model_of
from torch import Tensor

from mlops_tasks.data.tokens import Example
from mlops_tasks.scoring.critic import (
    ValueNetwork,
    explained_variance,
    gae,
    is_state,
    load_heads,
    save_heads,
    target_states,
    td_errors,
    token_scores,
)

LENGTHS = [5, 1, 3]
IS_STATE = is_state(LENGTHS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_states_are_the_places_up_to_each_candidates_length() -> None:
    assert is_state([3, 1]).tolist() == [[True, True, True], [True, False, False]]


def test_temporal_differences_are_as_worked_by_hand() -> None:
    values = torch.tensor([[0.0, 0.5, 0.25], [0.5, 9.0, 9.0]])
    errors = td_errors(values, torch.tensor([1.0, -1.0]), is_state_CS=is_state([3, 1]))
    assert errors.tolist() == [[0.5, -0.25, 0.75], [-1.5, 0, 0]]


def test_a_constant_value_gives_no_difference_but_at_the_end() -> None:
    errors = td_errors(torch.full((3, 5), 0.25), torch.tensor([1.0, 1.0, -1.0]), is_state_CS=IS_STATE)
    assert errors.tolist() == [[0, 0, 0, 0, 0.75], [0.75, 0, 0, 0, 0], [0, 0, -1.25, 0, 0]]


def test_the_differences_of_a_candidate_sum_to_its_reward_minus_its_first_value() -> None:
    values, rewards = drawn(3, 5), drawn(3, seed=1)
    errors = td_errors(values, rewards, is_state_CS=IS_STATE)
    torch.testing.assert_close(errors.sum(1), rewards - values[:, 0])


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_equal_the_double_sum(lam: float) -> None:
    values, rewards = drawn(3, 5), drawn(3, seed=1)
    found = gae(td_errors(values, rewards, is_state_CS=IS_STATE), lam=lam)
    for c, length in enumerate(LENGTHS):
        followed = [*values[c, 1:length].tolist(), 0.0]
        given = [0.0] * (length - 1) + [rewards[c].item()]
        errors = [given[j] + followed[j] - values[c, j].item() for j in range(length)]
        for j in range(length):
            expected = sum(lam**later * errors[j + later] for later in range(length - j))
            assert found[c, j].item() == pytest.approx(expected, abs=1e-5)
        assert found[c, length:].tolist() == [0.0] * (5 - length)


def test_advantages_have_the_precision_of_the_differences() -> None:
    errors = torch.zeros(1, 200, dtype=torch.float64)
    errors[0, -1] = 1
    # In float32 0.95 to the power of 199 has seven digits.
    assert gae(errors, lam=0.95)[0, 0].item() == pytest.approx(0.95**199, rel=1e-12)


def test_with_lambda_one_every_value_target_is_the_reward() -> None:
    values, rewards = drawn(3, 5), drawn(3, seed=1)
    targets = values + gae(td_errors(values, rewards, is_state_CS=IS_STATE), lam=1)
    torch.testing.assert_close(targets[IS_STATE], rewards.repeat_interleave(torch.tensor(LENGTHS)))


def test_explained_variance_is_as_worked_by_hand() -> None:
    returns = torch.tensor([1.0, -1, 1, -1])
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert explained_variance(torch.full((4,), 0.3), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)


def example(length: int, *, num_prompt: int, seed: int = 0) -> Example:
    ids = np.random.default_rng(seed).integers(2, NUM_TOKENS, length)
    return Example(str(seed), ids, np.arange(length) >= num_prompt)


def test_the_state_before_a_target_is_the_hidden_state_of_the_token_before_it() -> None:
    model = model_of(CONFIGS["llama"]())
    examples = [example(9, num_prompt=4), example(14, num_prompt=2, seed=1), example(5, num_prompt=4, seed=2)]
    together = target_states(model, examples, batch_rows=2)
    for one, states in zip(examples, together, strict=True):
        ids = torch.from_numpy(one.token_ids)[None]
        alone = model.base.base_model(input_ids=ids).last_hidden_state[0]
        first = int(one.is_target.argmax())
        torch.testing.assert_close(states, alone[first - 1 : -1], rtol=0, atol=1e-4)


def test_a_state_knows_nothing_of_the_token_that_it_comes_before() -> None:
    model = model_of(CONFIGS["llama"]())
    one = example(9, num_prompt=4)
    changed = Example("x", one.token_ids.copy(), one.is_target)
    changed.token_ids[6] = (changed.token_ids[6] + 1) % NUM_TOKENS
    before, after = target_states(model, [one, changed], batch_rows=1)
    assert before[:3].tolist() == after[:3].tolist()
    assert before[3].tolist() != after[3].tolist()


def test_a_new_head_values_everything_at_nothing() -> None:
    head = ValueNetwork(6)
    assert head(drawn(4, 6)).tolist() == [0.0] * 4


def test_features_are_standardised_and_one_that_never_changes_does_no_harm() -> None:
    head = ValueNetwork(3)
    head.standardise(torch.tensor([[1.0, 500.0, 7.0], [3.0, -500.0, 7.0]]))
    assert head.mean_D.tolist() == [2, 0, 7]
    assert head.deviation_D.tolist() == pytest.approx([1, 500, 1e-6])
    head.outer.weight.data.fill_(1)
    assert head(torch.tensor([[2.0, 0.0, 7.0]])).tolist() == [0]


def test_scores_of_a_solution_are_its_differences() -> None:
    head = ValueNetwork(3)
    torch.nn.init.ones_(head.outer.weight)
    states = drawn(4, 3)
    values = [head(state[None]).item() for state in states]
    expected = [values[1] - values[0], values[2] - values[1], values[3] - values[2], 2.0 - values[3]]
    assert token_scores(head, states, 2.0).tolist() == pytest.approx(expected, abs=1e-4)


def test_heads_are_read_as_they_were_written(tmp_path: Path) -> None:
    heads = [ValueNetwork(5, seed=seed) for seed in range(3)]
    for head in heads:
        head.standardise(drawn(20, 5, seed=7) * 100 + 3)
        torch.nn.init.normal_(head.outer.weight)
    save_heads(tmp_path / "heads", heads)
    states = drawn(4, 5)
    assert [head(states).tolist() for head in load_heads(tmp_path / "heads")] == [
        head(states).tolist() for head in heads
    ]
