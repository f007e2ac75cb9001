"""The decode loop against transformers' own generate, and sampling against numbers worked by hand."""

import pytest
import torch
from tiny_models import CONFIGS, NUM_TOKENS, PLAIN, by_request, model_of, requests_of
from transformers import BloomConfig, GPTNeoConfig, MambaConfig

from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.decoding import Request, Sampling, choose, decode
from mlops_tasks.model import MtpModel

END_IDS = frozenset(range(4, NUM_TOKENS, 9))


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_generate_of_transformers_token_for_token(name: str) -> None:
    model = model_of(CONFIGS[name]())
    requests = requests_of(9)
    free = [generated_by_transformers(model, request) for request in requests]
    end_ids = frozenset(made[3] for made in free[:3])
    expected = {}
    for request, made in zip(requests, free, strict=True):
        end = next((place for place, token in enumerate(made) if token in end_ids), None)
        expected[request.problem_id, 0] = (made[:end], end is not None)
    for batch_size in (1, 4, 32):
        done = decode(model, requests, sampling=Sampling(0), end_ids=end_ids, batch_size=batch_size)
        assert by_request(list(done)) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_what_all_prompts_start_with_is_read_once(name: str) -> None:
    model = model_of(CONFIGS[name]())
    shared = tuple(range(20, 40))
    # One prompt is a prefix of another, and one is only a token longer than what is shared.
    tails = [(3,), (3, 9, 4, 8), (7, 7), (2, 6, 5), (60,) * 9]
    requests = [Request(str(index), 0, (*shared, *tail), 12) for index, tail in enumerate(tails)]
    expected = {(one.problem_id, 0): (generated_by_transformers(model, one), False) for one in requests}
    num_read = []
    model.base.base_model.register_forward_pre_hook(
        lambda module, arguments, named: num_read.append(named["input_ids"].shape), with_kwargs=True
    )
    for batch_size in (1, 2, 5):
        num_read.clear()
        done = decode(model, requests, sampling=Sampling(0), end_ids=frozenset(), batch_size=batch_size)
        assert by_request(list(done)) == expected
        assert [shape[1] for shape in num_read if shape[1] >= len(shared)] == [len(shared)]


def test_a_token_is_chosen_behind_a_prompt_that_all_others_start_with() -> None:
    model = model_of(CONFIGS["llama"]())
    shared = tuple(range(20, 40))
    requests = [Request(str(len(tail)), 0, (*shared, *tail), 6) for tail in ((), (9,), (9, 4))]
    done = decode(model, requests, sampling=Sampling(0), end_ids=frozenset(), batch_size=3)
    assert by_request(list(done)) == {
        (one.problem_id, 0): (generated_by_transformers(model, one), False) for one in requests
    }


def generated_by_transformers(model: MtpModel, request: Request) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    made = model.base.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request.max_new_tokens, pad_token_id=0
    )
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("name", ["llama", "gpt2-absolute"])
def test_samples_do_not_depend_on_the_batch(name: str) -> None:
    model = model_of(CONFIGS[name]())
    requests = requests_of(6, num_samples=4)
    runs = [
        by_request(list(decode(model, requests, sampling=Sampling(1.0, 0.95, 7), end_ids=END_IDS, batch_size=size)))
        for size in (1, 5, 64)
    ]
    alone = by_request(
        list(decode(model, requests[9:10], sampling=Sampling(1.0, 0.95, 7), end_ids=END_IDS, batch_size=1))
    )
    assert runs[0] == runs[1] == runs[2]
    assert alone.items() <= runs[0].items()
    assert len({tuple(tokens) for tokens, _ in runs[0].values()}) > 18


def test_another_seed_draws_other_tokens() -> None:
    model = model_of(CONFIGS["llama"]())
    first, second = (
        by_request(
            list(decode(model, requests_of(4), sampling=Sampling(1.0, 1.0, seed), end_ids=frozenset(), batch_size=4))
        )
        for seed in (0, 1)
    )
    assert all(first[name] != second[name] for name in first)


def test_a_row_ends_when_it_has_enough() -> None:
    model = model_of(CONFIGS["llama"]())
    done = decode(
        model,
        requests_of(5),
        sampling=Sampling(0),
        end_ids=frozenset(),
        batch_size=3,
        is_enough=lambda ids: len(ids) == 4,
    )
    assert [(len(one.token_ids), one.is_ended) for one in done] == [(4, False)] * 5


def test_no_requests_are_done_at_once() -> None:
    assert list(decode(model_of(CONFIGS["llama"]()), [], sampling=Sampling(0), end_ids=END_IDS, batch_size=3)) == []


def test_a_model_with_another_state_is_refused() -> None:
    model = model_of(MambaConfig(vocab_size=NUM_TOKENS, hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match=r"\(mamba\) cannot be decoded .* it keeps LinearAttentionLayer between tokens"):
        list(decode(model, requests_of(1), sampling=Sampling(0), end_ids=END_IDS, batch_size=1))


def test_a_model_that_takes_no_positions_is_refused() -> None:
    model = model_of(BloomConfig(vocab_size=NUM_TOKENS, hidden_size=32, n_layer=1, n_head=4, **PLAIN))
    with pytest.raises(UserError, match=r"\(bloom\) cannot be decoded .* it fails on eight tokens"):
        list(decode(model, requests_of(1), sampling=Sampling(0), end_ids=END_IDS, batch_size=1))


def test_a_model_that_places_its_tokens_by_the_caches_length_is_refused() -> None:
    # Its local layers have a mask of their own, which takes the newest column for the newest token of every row.
    shape = {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 3, "num_heads": 4}
    model = model_of(GPTNeoConfig(vocab_size=NUM_TOKENS, hidden_size=32, max_position_embeddings=64, **shape, **PLAIN))
    with pytest.raises(UserError, match=r"\(gpt_neo\) cannot be decoded .* rows of different lengths are not read as"):
        list(decode(model, requests_of(1), sampling=Sampling(0), end_ids=END_IDS, batch_size=1))


LOGITS = torch.tensor([0.2, 0.5, 0.3]).log()


@pytest.mark.parametrize(
    ("draw", "top_p", "temperature", "token"),
    [
        (0.19, 1.0, 1.0, 0), (0.21, 1.0, 1.0, 1), (0.69, 1.0, 1.0, 1), (0.71, 1.0, 1.0, 2), (0.999999, 1.0, 1.0, 2),
        # 0.5 alone is not 0.7, with 0.3 it is: tokens 1 and 2 are left with 0.625 and 0.375.
        (0.0, 0.7, 1.0, 1), (0.62, 0.7, 1.0, 1), (0.63, 0.7, 1.0, 2),
        # The likeliest is left however small top_p is.
        (0.99, 0.01, 1.0, 1),
        # At half the temperature the probabilities are as their squares: 4, 25 and 9 of 38.
        (0.104, 1.0, 0.5, 0), (0.107, 1.0, 0.5, 1), (0.762, 1.0, 0.5, 1), (0.765, 1.0, 0.5, 2),
    ],
)  # fmt: skip
def test_a_draw_falls_on_the_token_worked_out_by_hand(
    draw: float, top_p: float, temperature: float, token: int
) -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    assert choose(logits, draws=[draw, 0.0], sampling=Sampling(temperature, top_p))[0].item() == token


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(LOGITS[None], draws=[0.99], sampling=Sampling(0)).tolist() == [1]
