"""Guessing ahead changes no completion, greedy or drawn; drawn tokens have the exact probabilities; and it stops where it does not pay.

Models here are in float64, so that two ways of adding up the same numbers choose the same token; with the tolerance of
float32 a tie may fall either way, as it may with another batch size.
"""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import CONFIGS, NUM_TOKENS, PLAIN, SHAPE, by_request, model_of, requests_of
from torch import nn
from transformers import GPT2Config, LlamaConfig

from mlops_tasks.evaluation.decoding import Request, Sampling, decode
from mlops_tasks.evaluation.speculation import Speculation
from mlops_tasks.model import HEADS_FILE, MtpModel

NUM_HEADS = 4
GREEDY = Sampling(0)
Found = dict[tuple[str, int], tuple[list[int], bool]]


def random_heads(name: str) -> MtpModel:
    model = model_of(CONFIGS[name](), NUM_HEADS).double()
    for head in model.heads:
        nn.init.normal_(head.outer.weight, std=0.1)
    return model


def trained_heads(name: str) -> MtpModel:
    """Heads that have learnt some of what the model itself writes, so that guesses are right now and then."""
    model = random_heads(name)
    requests = [replace(one, max_new_tokens=20) for one in requests_of(60)]
    done = decode(model, requests, sampling=GREEDY, end_ids=frozenset(), batch_size=60)
    texts = [torch.tensor([*one.request.prompt_ids, *one.token_ids]) for one in done]
    with torch.no_grad():
        hidden = [model.hidden(ids[None], torch.arange(len(ids))[None])[0] for ids in texts]
    optimizer = torch.optim.Adam(model.heads.parameters(), lr=1e-2)
    for _ in range(30):
        losses = [
            nn.functional.cross_entropy(
                model.head_logits(torch.cat([one[:-ahead] for one in hidden]), ahead),
                torch.cat([ids[ahead:] for ids in texts]),
            )
            for ahead in range(2, NUM_HEADS + 1)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return model


def written(
    model: MtpModel,
    requests: Sequence[Request],
    speculation: Speculation | None,
    *,
    batch_size: int,
    sampling: Sampling = GREEDY,
    end_ids: frozenset[int] = frozenset({5, 50}),
) -> Found:
    is_enough = lambda ids: ids[-2:] == [7, 8] or ids[-1] == 11  # noqa: E731
    done = decode(
        model, requests, sampling=sampling, end_ids=end_ids, batch_size=batch_size, is_enough=is_enough, speculation=speculation
    )  # fmt: skip
    return by_request(list(done))


@pytest.mark.parametrize("heads", [random_heads, trained_heads])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_plain_decoding(name: str, heads: Callable[[str], MtpModel]) -> None:
    model = heads(name)
    requests = [replace(one, max_new_tokens=12 + number % 9) for number, one in enumerate(requests_of(130))]
    plain = written(model, requests, None, batch_size=48)
    for batch_size, some in ((1, requests[:12]), (5, requests[:40]), (48, requests)):
        speculation = Speculation("always")
        found = written(model, some, speculation, batch_size=batch_size)
        assert found == {(one.problem_id, 0): plain[one.problem_id, 0] for one in some}
        length = speculation.metrics()["acceptance_length"]
        assert length > (1.2 if heads is trained_heads else 1.0)
    assert len({tuple(tokens) for tokens, _ in plain.values()}) > 100


def test_as_many_guesses_are_right_as_the_heads_say_of_the_whole_texts() -> None:
    model = trained_heads("llama")
    requests = [replace(one, max_new_tokens=30) for one in requests_of(20)]
    speculation = Speculation("always")
    done = list(decode(model, requests, sampling=GREEDY, end_ids=frozenset(), batch_size=7, speculation=speculation))
    num_steps = sum(steps_of(model, one.request.prompt_ids, one.token_ids) for one in done)
    # The first token of each comes with its prompt, before there are guesses.
    assert speculation.metrics()["acceptance_length"] == 20 * 29 / num_steps


def steps_of(model: MtpModel, prompt: tuple[int, ...], made: list[int]) -> int:
    """Steps with guesses that a text takes, going by one forward of it."""
    text = [*prompt, *made]
    hidden = model.hidden(torch.tensor([text]), torch.arange(len(text))[None])[0]
    guesses = torch.stack([model.head_logits(hidden, head).argmax(-1) for head in range(2, NUM_HEADS + 1)], dim=1)
    newest, num_steps = len(prompt), 0
    while newest < len(text) - 1:
        coming = text[newest + 1 : newest + NUM_HEADS]
        right = [guess == token for guess, token in zip(guesses[newest - 1].tolist(), coming, strict=False)]
        newest += 1 + next((place for place, is_right in enumerate(right) if not is_right), len(right))
        num_steps += 1
    return num_steps


@pytest.mark.parametrize("name", ["llama", "gemma2-mixed"])
def test_drawn_tokens_are_those_of_plain_decoding(name: str) -> None:
    model = trained_heads(name)
    requests = requests_of(10, num_samples=4)
    sampling = Sampling(0.4, 0.9, seed=3)
    plain = written(model, requests, None, batch_size=1, sampling=sampling)
    for batch_size in (1, 16):
        speculation = Speculation("always")
        assert written(model, requests, speculation, batch_size=batch_size, sampling=sampling) == plain
        assert speculation.metrics()["acceptance_length"] > 1.03


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1.0, 1.0, seed=1)])
def test_guessing_may_stop_and_start_at_any_step(sampling: Sampling) -> None:
    class Fickle(Speculation):
        turns: Iterator[bool] = itertools.cycle([True, False, False, True, True])

        def is_wanted(self, num_rows: int) -> bool:
            return next(self.turns)

    model = trained_heads("llama")
    requests = requests_of(20)
    plain = written(model, requests, None, batch_size=6, sampling=sampling)
    fickle = Fickle()
    assert written(model, requests, fickle, batch_size=6, sampling=sampling) == plain
    assert 0.1 < fickle.metrics()["speculated_share"] < 0.9


def test_a_row_that_joins_asks_for_the_batch_that_it_joins() -> None:
    class NotInAFullBatch(Speculation):
        sizes: ClassVar[list[tuple[int, bool]]] = []

        def is_wanted(self, num_rows: int) -> bool:
            return num_rows < 5

        def record(self, num_rows: int, *, has_guesses: bool, counts: Sequence[int], seconds: float) -> None:
            self.sizes.append((num_rows, has_guesses))

    speculation = NotInAFullBatch()
    written(trained_heads("llama"), requests_of(20), speculation, batch_size=5)
    assert (5, True) not in speculation.sizes
    assert {(5, False), (4, True)} <= {*speculation.sizes}


def test_a_guess_may_reach_past_the_models_last_position() -> None:
    config = GPT2Config(vocab_size=NUM_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=24, **PLAIN)
    model = model_of(config, NUM_HEADS).double()
    requests = [Request(str(length), 0, tuple(range(2, 2 + length)), 24 - length) for length in (1, 5, 20, 23)]
    found = written(model, requests, Speculation("always"), batch_size=4, end_ids=frozenset())
    assert found == written(model, requests, None, batch_size=1, end_ids=frozenset())


# Drawn tokens against the exact probability of every text there is: 4 tokens, 3 of them drawn.

SMALL = {**SHAPE, "vocab_size": 4, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
NUM_DRAWN = 3


def small_model() -> MtpModel:
    model = model_of(LlamaConfig(**SMALL), NUM_HEADS).double()
    with torch.no_grad():
        model.base.get_output_embeddings().weight.mul_(4)
    return model


def exact_probabilities(model: MtpModel, prompt: tuple[int, ...], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Of each text, by one plain forward of it; top-p by sorting a list."""
    exact = {}
    for text in itertools.product(range(4), repeat=NUM_DRAWN):
        with torch.no_grad():
            logits = model.base(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1] / sampling.temperature
        exact[text] = math.prod(
            nucleus(row, sampling.top_p)[token] for row, token in zip(logits.softmax(-1).tolist(), text, strict=True)
        )
    assert math.isclose(sum(exact.values()), 1)
    return exact


def nucleus(probabilities: list[float], top_p: float) -> list[float]:
    kept: list[int] = []
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if sum(probabilities[other] for other in kept) < top_p:
            kept.append(token)
    total = sum(probabilities[token] for token in kept)
    return [one / total if token in kept else 0.0 for token, one in enumerate(probabilities)]


def chi_square_excess(counts: Counter[tuple[int, ...]], exact: dict[tuple[int, ...], float]) -> float:
    """How many standard deviations the statistic is above its mean (Wilson and Hilferty's cube root)."""
    total = counts.total()
    cells = [(counts[text], total * exact[text]) for text in exact if total * exact[text] >= 5]
    rare = (total - sum(count for count, _ in cells), total - sum(expected for _, expected in cells))
    cells += [rare] if rare[1] >= 5 else []
    freedom = len(cells) - 1
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    scatter = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - scatter)) / math.sqrt(scatter)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_drawn_texts_have_the_models_probabilities(temperature: float, top_p: float) -> None:
    model, prompt, sampling = small_model(), (1, 3, 2), Sampling(temperature, top_p, seed=5)
    exact = exact_probabilities(model, prompt, sampling)
    assert sum(probability > 0.005 for probability in exact.values()) > 10
    requests = [Request("p", sample, prompt, NUM_DRAWN) for sample in range(8000)]
    speculation = Speculation("always")
    done = list(
        decode(model, requests, sampling=sampling, end_ids=frozenset(), batch_size=2000, speculation=speculation)
    )
    counts = Counter(tuple(one.token_ids) for one in done)
    assert 1.1 < speculation.metrics()["acceptance_length"] < 2
    assert chi_square_excess(counts, exact) < 3.1  # one in a thousand; the seed is fixed
    # It would see a distribution that is off by little.
    assert chi_square_excess(counts, exact_probabilities(model, prompt, Sampling(temperature * 1.1, top_p))) > 5


# When it pays. Six steps of each kind, then a verdict, until the 192nd step of this size of batch.


def recorded(
    speculation: Speculation, *, count: int, seconds: float, plain_seconds: float, num_steps: int = 12
) -> list[bool]:
    kinds = []
    for _ in range(num_steps):
        kinds.append(speculation.is_wanted(3))
        counts, took = ([count] * 3, seconds) if kinds[-1] else ([1] * 3, plain_seconds)
        speculation.record(3, has_guesses=kinds[-1], counts=counts, seconds=took)
    return kinds


def test_it_goes_on_where_it_is_faster(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    speculation = Speculation()
    assert recorded(speculation, count=2, seconds=1.5, plain_seconds=1.0) == [True] * 6 + [False] * 6
    assert recorded(speculation, count=2, seconds=1.5, plain_seconds=1.0) == [True] * 12
    assert caplog.messages == [
        "speculative decoding on for up to 4 rows: 2.00 tokens a step, 1.33 times as fast as plain steps"
    ]
    # 6 + 12 steps of 3 rows with 2 tokens, and 6 of 3 rows with one: 108 of 126 tokens.
    assert speculation.metrics() == {"acceptance_length": 2.0, "speculated_share": 108 / 126}


def test_it_turns_itself_off_where_it_does_not_pay_says_so_once_and_asks_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    speculation = Speculation()
    kinds = recorded(speculation, count=2, seconds=2.5, plain_seconds=1.0, num_steps=192)
    assert kinds == [True] * 6 + [False] * 186
    assert recorded(speculation, count=2, seconds=2.5, plain_seconds=1.0) == [True] * 6 + [False] * 6
    assert caplog.messages == [
        "speculative decoding off: it does not pay for up to 4 rows: 2.00 tokens a step, 0.80 times as fast as plain steps"
    ]
    assert speculation.is_wanted(5)  # of more rows nothing is known


def test_a_mode_is_obeyed_without_asking() -> None:
    always, never = Speculation("always"), Speculation("never")
    assert recorded(always, count=1, seconds=9.0, plain_seconds=1.0) == [True] * 12
    assert recorded(never, count=4, seconds=1.0, plain_seconds=9.0) == [False] * 12
    assert never.metrics() == {"acceptance_length": None, "speculated_share": 0.0}


def test_a_model_with_one_head_is_decoded_plainly() -> None:
    speculation = Speculation("always")
    model = model_of(CONFIGS["llama"]())
    assert written(model, requests_of(5), speculation, batch_size=2) == written(
        model, requests_of(5), None, batch_size=2
    )
    assert speculation.metrics()["speculated_share"] == 0


# Heads of a file.


def test_saved_heads_guess_what_the_heads_that_were_saved_guess(tmp_path: Path) -> None:
    model = random_heads("llama")
    model.save(tmp_path)
    loaded = MtpModel.with_saved_heads(model.base, tmp_path / HEADS_FILE)
    hidden = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_head = torch.stack([model.head_logits(hidden, head).argmax(-1) for head in (2, 3, 4)], dim=1)
    assert torch.equal(model.guess(hidden), by_head)
    assert torch.equal(loaded.guess(hidden), by_head)
    assert len(by_head.unique(dim=1).T) > 1
