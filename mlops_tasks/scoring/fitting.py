"""The stage `fit_critic`: value heads on the base model's hidden states, and how much they explain.

Owns how a head learns and how it is measured. The base is not trained. K heads each learn without two folds of the problems: one
tells when to stop, the other is valued by that head and no other, here and when tokens are scored, so what is measured is what
is used. What values are made of is `critic`'s, the candidates and rewards are those of the stage `reward`.

Shapes: C candidates, S states of the longest one, N states of all, D features.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import torch
from torch import Tensor

from mlops_tasks.config.learning import ValueHead
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import read_problems
from mlops_tasks.data.prompts import shots_of
from mlops_tasks.data.tokens import Example, encode, fold_of
from mlops_tasks.errors import DataError
from mlops_tasks.logs import watched
from mlops_tasks.machine import accelerator
from mlops_tasks.model import MtpModel
from mlops_tasks.parts import Parts
from mlops_tasks.pretrained import load_tokenizer
from mlops_tasks.scoring.candidates import Rewarded, as_problem, read_rewards, telling
from mlops_tasks.scoring.critic import (
    HEADS_FILE,
    ValueNetwork,
    explained_variance,
    gae,
    is_state,
    save_heads,
    target_states,
    td_errors,
)
from mlops_tasks.scoring.gate import Verdict
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

BATCH_ROWS = 16
BATCH_CANDIDATES = 32
WEIGHT_DECAY = 0.01
_POSITION_FEATURES = 64
_STATES = pa.schema({"start": pa.int32(), "states": pa.large_binary()})


class FitConfig(Settings):
    """The part of the recipe that `fit_critic` is keyed by."""

    value_head: ValueHead
    text: Text
    seed: int


@dataclass(frozen=True)
class Episodes:
    """Candidates as the critic sees them."""

    problem_ids: tuple[str, ...]
    states: tuple[Tensor, ...]
    """One [n, D] a candidate."""
    rewards_C: Tensor
    """R."""

    def of(self, folds: Collection[int], *, fold: Mapping[str, int]) -> Episodes:
        """Those of the problems in some folds."""
        return self.at([index for index, problem_id in enumerate(self.problem_ids) if fold[problem_id] in folds])

    def at(self, indices: Sequence[int]) -> Episodes:
        """Those at some places."""
        return Episodes(
            tuple(self.problem_ids[index] for index in indices),
            tuple(self.states[index] for index in indices),
            self.rewards_C[list(indices)],
        )

    def with_positions_only(self) -> Episodes:
        """The same candidates, in which a state says nothing but how many targets came before it."""
        features_SD = _encoded_positions(max(map(len, self.states)))
        return Episodes(self.problem_ids, tuple(features_SD[: len(one)] for one in self.states), self.rewards_C)

    def returns_N(self) -> Tensor:
        """What came of each state: R of its candidate."""
        return self.rewards_C.repeat_interleave(torch.tensor([len(one) for one in self.states]))


def fit_critic(attempt: Attempt) -> dict[str, Any]:
    """Write the heads and `verdict.json`.

    Raises:
        UserError: the model cannot be used.
        DataError: its hidden states are not finite.
    """
    started = time.monotonic()
    config = FitConfig.model_validate(attempt.config)
    settings = config.value_head
    rows = read_rewards(attempt.inputs["rewards"].path("rewards.parquet"))
    examples, rewards = _examples(attempt, config, rows)
    problem_ids = {example.problem_id for example in examples}
    heads: list[ValueNetwork] = []
    measured: Mapping[str, Any] = {"explained_variance": None, "position_explained_variance": None}
    if len({fold_of(config.seed, one, settings.num_folds) for one in problem_ids}) == settings.num_folds:
        states = _states(attempt, config, examples)
        episodes = Episodes(tuple(one.problem_id for one in examples), tuple(states), torch.tensor(rewards))
        heads, measured = learn(episodes, settings, seed=config.seed)
    save_heads(attempt.folder / HEADS_FILE, heads)
    found = {name: measured[name] for name in ("explained_variance", "position_explained_variance")}
    verdict = Verdict(num_problems=len(problem_ids), num_folds=settings.num_folds, seed=config.seed, **found)
    verdict.write(attempt.folder)
    seconds = time.monotonic() - started
    log.info(
        "fitted value heads on %d candidates of %d problems in %.1f s: %s",
        len(examples), len(problem_ids), seconds, found,
    )  # fmt: skip
    return {**measured, "num_problems": len(problem_ids), "num_candidates": len(examples), "seconds": seconds}


def _examples(attempt: Attempt, config: FitConfig, rows: Sequence[Rewarded]) -> tuple[list[Example], list[float]]:
    """Candidates as tokens with their rewards, those of like length together; but for those that are too long, or teach nothing."""
    data, is_telling = attempt.inputs["data"], telling(rows)
    by_id = {problem.id: problem for problem in read_problems(data.path("train.parquet"))}
    shots = shots_of(read_problems(data.path("prompt.parquet")), config.text.prompt)
    tokenizer = load_tokenizer(attempt.inputs["model"].folder("model"))
    found: list[tuple[Example, float]] = []
    for row in rows:
        if row.problem_id in is_telling:
            examples, _ = encode([as_problem(by_id[row.problem_id], row.solution)], tokenizer, config.text, shots)
            found += [(example, row.standardised) for example in examples]
    found.sort(key=lambda one: len(one[0]))
    return [example for example, _ in found], [reward for _, reward in found]


def _states(attempt: Attempt, config: FitConfig, examples: Sequence[Example]) -> list[Tensor]:
    """States of candidates, in their order; whole batches are put away meanwhile, so a killed stage goes on where it was.

    Raises:
        DataError: one is not finite.
    """
    model = attempt.inputs["model"]
    base = MtpModel.load(model.folder("model"), num_heads=1, seed=0)
    base.check_length(config.text.max_length)
    base.to(accelerator())
    parts = Parts(attempt.store, attempt.prefix, _STATES, identity=("start",), token=attempt.token)
    earlier = {row["start"]: row["states"] for row in parts.read()}
    starts = range(0, len(examples), BATCH_ROWS)
    found: list[Tensor] = []
    for start in watched(starts, "states of the candidates", len(starts), unit="batch"):
        batch = examples[start : start + BATCH_ROWS]
        if start in earlier:
            lengths = [int(one.is_target.sum()) for one in batch]
            together = torch.frombuffer(bytearray(earlier[start]), dtype=torch.float32)
            states = list(torch.split(together.view(sum(lengths), -1), lengths))
        else:
            states = target_states(base, batch, batch_rows=BATCH_ROWS)
            parts.add({"start": start, "states": torch.cat(states).numpy().tobytes()})
        found += states
    broken = next((example for example, one in zip(examples, found, strict=True) if not one.isfinite().all()), None)
    if broken is not None:
        raise DataError(
            f"The base model {model.uri} gives a candidate of problem {broken.problem_id} hidden states that are not finite. "
            "Its weights are broken: pull it again."
        )
    return found


def learn(episodes: Episodes, settings: ValueHead, *, seed: int) -> tuple[list[ValueNetwork], dict[str, Any]]:
    """Fit the heads of all folds, and measure them on what they did not see, beside heads that see positions only.

    Args:
        episodes: candidates of problems in every fold.

    Returns:
        The head of each fold, and `explained_variance`, `position_explained_variance` and what each fold contributes.
    """
    num_folds = settings.num_folds
    fold = {problem_id: fold_of(seed, problem_id, num_folds) for problem_id in episodes.problem_ids}
    heads: list[ValueNetwork] = []
    parts: list[dict[str, Tensor]] = []
    for k in watched(range(num_folds), "value heads", num_folds, unit="fold"):
        stops = (k + 1) % num_folds
        held_out, stopping = episodes.of({k}, fold=fold), episodes.of({stops}, fold=fold)
        rest = episodes.of({*range(num_folds)} - {k, stops}, fold=fold)
        heads.append(fit(rest, stopping, settings, seed=seed))
        blind = fit(rest.with_positions_only(), stopping.with_positions_only(), settings, seed=seed)
        parts.append(
            {
                "returns": held_out.returns_N(),
                "explained_variance": values_of(heads[-1], held_out),
                "position_explained_variance": values_of(blind, held_out.with_positions_only()),
            }
        )
    names = ("explained_variance", "position_explained_variance")
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("returns", *names)}
    return heads, {
        **{name: explained_variance(whole[name], whole["returns"]) for name in names},
        "by_fold": [
            {name: _finite(explained_variance(part[name], part["returns"])) for name in names} for part in parts
        ],
        "num_states": len(whole["returns"]),
    }


def fit(episodes: Episodes, stopping: Episodes, settings: ValueHead, *, seed: int) -> ValueNetwork:
    """A head that has learnt from some candidates, as it was when it foresaw the rewards of others best.

    Its targets are A_j + V_{j-1}: first with λ = 1, which makes them R, since with values that are still 0 a smaller λ would teach
    the distance to the end and nothing else; then with `gae_lambda`.
    """
    head = ValueNetwork(episodes.states[0].shape[1], seed=seed)
    head.standardise(torch.cat(episodes.states))
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    best, kept = _error(head, stopping), copy.deepcopy(head.state_dict())
    for lam in (1.0, settings.gae_lambda):
        num_stale = 0
        for _ in range(settings.max_epochs):
            _pass(head, optimizer, episodes, lam=lam, generator=generator)
            error = _error(head, stopping)
            num_stale = 0 if error < best else num_stale + 1
            if error < best:
                best, kept = error, copy.deepcopy(head.state_dict())
            if num_stale >= settings.patience:
                break
        head.load_state_dict(kept)
    return head.eval()


def _pass(
    head: ValueNetwork, optimizer: torch.optim.Optimizer, episodes: Episodes, *, lam: float, generator: torch.Generator
) -> None:
    """One pass over all candidates."""
    order = torch.randperm(len(episodes.states), generator=generator).tolist()
    for start in range(0, len(order), BATCH_CANDIDATES):
        optimizer.zero_grad()
        value_loss(head, episodes.at(order[start : start + BATCH_CANDIDATES]), lam=lam).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def value_loss(head: ValueNetwork, episodes: Episodes, *, lam: float) -> Tensor:
    """Mean square of A_j, which is target minus value, over all states; the target is held fixed."""
    values_N = cast(Tensor, head(torch.cat(episodes.states)))
    return (values_N - _value_targets(values_N.detach(), episodes, lam=lam)).square().mean()


def _value_targets(values_N: Tensor, episodes: Episodes, *, lam: float) -> Tensor:
    """A + V of each state; behind a candidate's end nothing is valued, so only here are candidates padded."""
    is_state_CS = is_state([len(one) for one in episodes.states])
    values_CS = values_N.new_zeros(is_state_CS.shape).masked_scatter_(is_state_CS, values_N)
    errors_CS = td_errors(values_CS, episodes.rewards_C, is_state_CS=is_state_CS)
    return (values_CS + gae(errors_CS, lam=lam))[is_state_CS]


@torch.no_grad()
def values_of(head: ValueNetwork, episodes: Episodes) -> Tensor:
    """Values of all states, in the order of `returns_N`."""
    return cast(Tensor, head(torch.cat(episodes.states)))


def _error(head: ValueNetwork, episodes: Episodes) -> float:
    error = float((values_of(head, episodes) - episodes.returns_N()).square().mean())
    return error if math.isfinite(error) else math.inf


def _encoded_positions(length: int) -> Tensor:
    """Sines and cosines of the position, as in arXiv 1706.03762."""
    rates = 10_000 ** (-torch.arange(0, _POSITION_FEATURES, 2) / _POSITION_FEATURES)
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _finite(value: float) -> float | None:
    """None for a fold whose returns are all the same."""
    return value if math.isfinite(value) else None
