"""The stage `score_shard`: raw values of a share of the training problems.

Owns which problems a shard takes, how they are batched, and that base and reference speak of the same tokens. What a score is
and how it is kept is `scorers`'. Problems go in fixed blocks: padding changes the last bits of a loss, so the merged result
could otherwise depend on the number of shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem, read_problems
from mlops_tasks.data.prompts import shots_of
from mlops_tasks.data.tokens import Example, Row, encode, fold_of, to_batch
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.logs import watched
from mlops_tasks.loss import at_tokens, shifted_targets, token_losses
from mlops_tasks.machine import accelerator
from mlops_tasks.model import MtpModel
from mlops_tasks.pretrained import load_tokenizer
from mlops_tasks.scoring import scorers
from mlops_tasks.scoring.candidates import read_rewards, telling
from mlops_tasks.scoring.critic import HEADS_FILE, load_heads, target_states, token_scores
from mlops_tasks.scoring.gate import VERDICT_FILE, Verdict
from mlops_tasks.scoring.scorers import ScoreRow, excess, generator_of, write_scores
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact

# All three change bits, so they are the same everywhere. A batch of 8 rows bounds activations, 1024 rows bound logits.
BLOCK_PROBLEMS = 32
BATCH_ROWS = 8
CHUNK_ROWS = 1024

Nats = dict[str, npt.NDArray[np.float32]]


class Scored(Settings):
    """The part of a recipe's scoring that changes raw values."""

    scorer: Literal["rho1", "shuffled", "random", "position", "critic"]
    mode: Literal["dynamic", "static"] = "dynamic"
    min_gain: float | None = None
    """The critic's gate."""

    @property
    def needs_reference(self) -> bool:
        return self.scorer in ("rho1", "shuffled")

    @property
    def needs_base(self) -> bool:
        return self.scorer == "shuffled" or (self.scorer == "rho1" and self.mode == "static")


class Folds(Settings):
    """Cross-fitting: a problem is scored by the reference that did not see its fold."""

    num_folds: int
    seed: int


class ShardConfig(Settings):
    """What a shard is keyed by, beside data, tokenizer and models."""

    scoring: Scored
    text: Text
    seed: int
    fold: Folds | None
    shard: int
    num_shards: int


def score_shard(attempt: Attempt) -> dict[str, Any]:
    """Write `scores.parquet` for blocks i, i+n, i+2n, … of the training problems.

    Raises:
        UserError: base and reference have different tokenizers, or a model cannot be used.
        DataError: a model's loss is not finite.
    """
    config = ShardConfig.model_validate(attempt.config)
    blocks, too_long = _my_blocks(attempt, config)
    examples = [example for block in blocks for example in block]
    reference = _reference_nats(attempt, config, blocks) if config.scoring.needs_reference else None
    base = _model_nats(attempt.inputs["model"], blocks, config, "base") if config.scoring.needs_base else None
    values = _critic_scores(attempt, config, blocks) if config.scoring.scorer == "critic" else None
    rows = {example.problem_id: _row(example, config, reference, base, values) for example in examples}
    write_scores(attempt.folder / "scores.parquet", rows)
    return {"num_problems": len(rows), "num_too_long": len(too_long), "too_long": too_long}


def example_losses(model: MtpModel, examples: Sequence[Example], *, batch_rows: int) -> list[npt.NDArray[np.float32]]:
    """Losses of head 1, in nats, for each token of each example; 0 where there is no target.

    Args:
        model: In evaluation mode.
        examples: One a row, so that none can see another.
        batch_rows: Rows in one forward; another number changes the last bits.
    """
    device = model.base.device
    by_length = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    losses: dict[int, npt.NDArray[np.float32]] = {}
    for start in range(0, len(examples), batch_rows):
        chosen = by_length[start : start + batch_rows]
        batch = to_batch([Row((examples[index],)) for index in chosen], pad_id=0).to(device)
        targets_BS = shifted_targets(
            batch.input_ids, is_target_BS=batch.is_target, document_ids_BS=batch.document_ids, num_heads=1
        )[0]
        with torch.no_grad():
            hidden_BSD = model.hidden(batch.input_ids, batch.position_ids)
        nats_BS = at_tokens(token_losses(model, hidden_BSD, targets_BS=targets_BS, chunk_rows=CHUNK_ROWS)).cpu()
        losses.update({index: nats_BS[b, : len(examples[index])].numpy() for b, index in enumerate(chosen)})
    return [losses[index] for index in range(len(examples))]


def tokenizer_difference(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str | None:
    """In what two tokenizers differ, in words; None if every text becomes the same tokens."""
    vocabularies = ours.get_vocab(), theirs.get_vocab()
    pieces = sorted(piece for piece, _ in vocabularies[0].items() ^ vocabularies[1].items())
    if pieces:
        ids = " and ".join(str(vocabulary.get(pieces[0], "none")) for vocabulary in vocabularies)
        return f"{len(set(pieces))} pieces of the vocabulary have different ids, the first is {pieces[0]!r} with {ids}"
    special = ours.special_tokens_map, theirs.special_tokens_map
    for name in sorted({*special[0], *special[1]}):
        if (values := [each.get(name) for each in special])[0] != values[1]:
            return f"{name} is {values[0]!r} in one and {values[1]!r} in the other"
    contents = _content(ours), _content(theirs)
    parts = [name for name in sorted({*contents[0], *contents[1]}) if contents[0].get(name) != contents[1].get(name)]
    return f"{', '.join(parts)} of tokenizer.json differ" if parts else None


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    content: dict[str, Any] = json.loads(backend.to_str())
    # Truncation and padding are what the last call asked for, not what the tokenizer is.
    return {name: value for name, value in content.items() if name not in ("version", "truncation", "padding")}


def _require_same_tokenizer(base: Artifact, ours: PreTrainedTokenizerBase, reference: Artifact) -> None:
    difference = tokenizer_difference(ours, load_tokenizer(reference.folder("model")))
    if difference:
        raise UserError(
            f"The tokenizers of the base model {base.uri} and of the reference {reference.uri} differ: {difference}. Their "
            "losses are compared token by token: take a reference with the base model's tokenizer, or let scoring.reference "
            "be trained or cross-fitted, which starts from the base model."
        )


def _my_blocks(attempt: Attempt, config: ShardConfig) -> tuple[list[list[Example]], list[str]]:
    """Examples of this shard's blocks, and the ids of those that are too long."""
    data = attempt.inputs["data"]
    problems = read_problems(data.path("train.parquet"))
    shots = shots_of(read_problems(data.path("prompt.parquet")), config.text.prompt)
    tokenizer = load_tokenizer(attempt.inputs["model"].folder("model"))
    starts = range(config.shard * BLOCK_PROBLEMS, len(problems), config.num_shards * BLOCK_PROBLEMS)
    encoded = [encode(_block(problems, start), tokenizer, config.text, shots) for start in starts]
    return [examples for examples, _ in encoded], [problem_id for _, too_long in encoded for problem_id in too_long]


def _block(problems: Sequence[Problem], start: int) -> Sequence[Problem]:
    return problems[start : start + BLOCK_PROBLEMS]


def _reference_nats(attempt: Attempt, config: ShardConfig, blocks: Sequence[Sequence[Example]]) -> Nats:
    base, folds = attempt.inputs["model"], config.fold
    ours = load_tokenizer(base.folder("model"))
    found: Nats = {}
    for k in range(folds.num_folds if folds else 1):
        reference = attempt.inputs[f"reference{k}"]
        _require_same_tokenizer(base, ours, reference)
        unseen = [
            [each for each in block if folds is None or fold_of(folds.seed, each.problem_id, folds.num_folds) == k]
            for block in blocks
        ]
        found |= _model_nats(reference, unseen, config, f"reference {k}")
    return found


def _critic_scores(attempt: Attempt, config: ShardConfig, blocks: Sequence[Sequence[Example]]) -> Nats:
    """What each token of a problem's own solution changes of the reward that is expected; nothing where the gate refuses.

    Each problem is valued by the head that did not learn from it. One whose candidates all have one reward, or that has none, is
    left out: there is nothing that a token could have changed.
    """
    assert config.scoring.min_gain is not None
    verdict = Verdict.read(attempt.inputs["critic"].path(VERDICT_FILE))
    if not verdict.is_used(config.scoring.min_gain):
        return {}
    rewarded = read_rewards(attempt.inputs["rewards"].path("rewards.parquet"))
    own = {row.problem_id: row.standardised for row in rewarded if row.origin == "reference"}
    rewards = {problem_id: own[problem_id] for problem_id in telling(rewarded)}
    heads = load_heads(attempt.inputs["critic"].path(HEADS_FILE))
    model = _load(attempt.inputs["model"], config)
    found: Nats = {}
    for block in watched(blocks, "score with the critic", len(blocks), unit="block"):
        known = [example for example in block if example.problem_id in rewards]
        for example, states in zip(known, target_states(model, known, batch_rows=BATCH_ROWS), strict=True):
            head = heads[fold_of(verdict.seed, example.problem_id, verdict.num_folds)]
            found[example.problem_id] = token_scores(head, states, rewards[example.problem_id])
    return found


def _load(artifact: Artifact, config: ShardConfig) -> MtpModel:
    model = MtpModel.load(artifact.folder("model"), num_heads=1, seed=0)
    model.check_length(config.text.max_length)
    return model.to(accelerator())


def _model_nats(artifact: Artifact, blocks: Sequence[Sequence[Example]], config: ShardConfig, name: str) -> Nats:
    if not any(blocks):
        return {}
    model = _load(artifact, config)
    found: Nats = {}
    for block in watched(blocks, f"score with the {name}", len(blocks), unit="block"):
        for example, nats in zip(block, example_losses(model, block, batch_rows=BATCH_ROWS), strict=True):
            if not np.isfinite(nats).all():
                raise DataError(
                    f"The {name} {artifact.uri} gives problem {example.problem_id} a loss that is not finite. "
                    "Its weights are broken: train or pull it again."
                )
            found[example.problem_id] = nats
    return found


def _row(
    example: Example, config: ShardConfig, reference: Nats | None, base: Nats | None, values: Nats | None
) -> ScoreRow:
    token_ids, is_target = example.token_ids.astype(np.int32), example.is_target
    rng = generator_of(config.seed, example.problem_id)
    reference_nats = None if reference is None else reference[example.problem_id]
    base_nats = None if base is None else base[example.problem_id]
    match config.scoring.scorer:
        case "rho1":
            return ScoreRow(token_ids, is_target, reference_nats, base_nats)
        case "shuffled":
            assert base_nats is not None and reference_nats is not None
            score = scorers.shuffled(excess(base_nats, reference_nats, "signed"), is_target, rng)
        case "random":
            score = scorers.random(is_target, rng)
        case "position":
            score = scorers.position(is_target)
        case "critic":
            assert values is not None
            score = np.zeros(len(example), dtype=np.float32)
            # Equal scores weigh 1 each: so does every token that the critic says nothing of.
            score[is_target] = values.get(example.problem_id, 0.0)
    return ScoreRow(token_ids, is_target, score=score)
