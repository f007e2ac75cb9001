"""What a training learns from, and in which order: examples, scores, optimiser steps, micro-batches.

The order is a function of seed and step alone: a rank knows all examples of a step and takes its share of the packed rows, so
neither the number of ranks nor the size of a micro-batch changes what a step learns from. Text and packing are `data`'s, scores
are made by `scoring`; what is done with a micro-batch is `training`'s.

Shape letters: H head, B packed rows, S position.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from mlops_tasks.config.learning import LowRank, Train, Weighting
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import read_problems
from mlops_tasks.data.prompts import shots_of
from mlops_tasks.data.tokens import Batch, Example, Row, encode, fold_of, lay_out, pack, padding_id, to_batch
from mlops_tasks.dropout import token_numbers
from mlops_tasks.errors import DataError, Unfit
from mlops_tasks.loss import NO_TARGET, shifted_targets
from mlops_tasks.pretrained import load_tokenizer
from mlops_tasks.scoring.scorers import ScoreRow, excess, read_scores
from mlops_tasks.store import Artifact

log = logging.getLogger(__name__)

Values = Mapping[str, npt.NDArray[np.float32]]


class Fold(Settings):
    """The part of the problems that a cross-fitted reference must not see."""

    num_folds: int
    fold: int
    seed: int


class Scorer(Settings):
    """The recipe's scoring without the reference, whose work is done when a training starts."""

    scorer: Literal["uniform", "rho1", "shuffled", "random", "position", "critic"]
    mode: Literal["dynamic", "static"] | None = None
    excess: Literal["signed", "abs", "relative"] = "signed"

    @property
    def is_dynamic(self) -> bool:
        """Whether weights follow the running student."""
        return self.scorer == "rho1" and self.mode == "dynamic"


class Lesson(Settings):
    """The part of the spec that a training is keyed by."""

    train: Train
    text: Text
    scoring: Scorer
    weighting: Weighting | None
    seed: int
    fold: Fold | None


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Packed rows of one forward."""

    batch: Batch
    targets_HBS: torch.Tensor
    """int64, -100 where head k has no target."""
    values_BS: torch.Tensor | None
    """float32: see `Corpus.values`."""
    problem_ids: tuple[str, ...]
    numbers_BS: torch.Tensor | None = None
    """int32: what dropout's masks are made of; None: nothing is dropped."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
        values_BS = None if self.values_BS is None else self.values_BS.to(device)
        numbers_BS = None if self.numbers_BS is None else self.numbers_BS.to(device)
        return MicroBatch(self.batch.to(device), self.targets_HBS.to(device), values_BS, self.problem_ids, numbers_BS)

    def num_targets_H(self) -> torch.Tensor:
        """Targets of each head."""
        return (self.targets_HBS != NO_TARGET).sum((1, 2))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised examples of one training, and what their weights are made of."""

    lesson: Lesson
    tokenizer: PreTrainedTokenizerBase
    examples: list[Example]
    validation: list[Example]
    num_too_long: int
    values: Values | None
    """A value a token: the reference's nats where scores are dynamic, else the scores; None where every weight is 1."""

    @property
    def num_draws(self) -> int:
        """Problems that all steps take together, each epoch's repetitions among them."""
        train = self.lesson.train
        if train.steps is not None:
            return train.steps * train.batch_size
        assert train.epochs is not None
        return max(1, round(train.epochs * len(self.examples)))

    @property
    def num_steps(self) -> int:
        """Optimiser steps; the last one of `epochs` may be smaller."""
        return math.ceil(self.num_draws / self.lesson.train.batch_size)

    def of_step(self, step: int) -> list[Example]:
        """Examples of a step, counted from 0: a stretch of one endless sequence of permutations."""
        size = self.lesson.train.batch_size
        places = range(step * size, min((step + 1) * size, self.num_draws))
        epochs = (divmod(place, len(self.examples)) for place in places)
        return [self.examples[_permutation(self.lesson.seed, epoch, len(self.examples))[at]] for epoch, at in epochs]

    def micro_batches(
        self,
        examples: Sequence[Example],
        values: Values | None,
        *,
        rank: int,
        num_ranks: int,
        num_rows: int,
        step: int | None = None,
    ) -> list[MicroBatch]:
        """This rank's share of some examples, packed.

        Args:
            examples: of all ranks.
            values: see `Corpus.values`; None where everything weighs 1.
            rank: this one.
            num_ranks: who share.
            num_rows: largest number of rows in a micro-batch.
            step: counted from 0, in which they are learnt; None: they are looked at, without dropout.

        Returns:
            As many micro-batches as every rank gets, so that all do the same; those for which this rank has no row are without targets.
        """
        rows = pack(examples, self.lesson.text.max_length)
        mine, most = rows[rank::num_ranks], len(rows[::num_ranks])
        nothing = [_without_targets(rows[0].examples[0])]
        return [self.micro_batch(mine[at : at + num_rows] or nothing, values, step) for at in range(0, most, num_rows)]

    def rehearsal(self) -> MicroBatch:
        """A micro-batch from which nothing can be learnt."""
        return self.micro_batch([_without_targets(self.examples[0])], self.values)

    def micro_batch(self, rows: Sequence[Row], values: Values | None, step: int | None = None) -> MicroBatch:
        """Lay rows out as tensors, values and dropout's numbers beside them; `step` as in `micro_batches`."""
        batch = to_batch(rows, pad_id=padding_id(self.tokenizer))
        targets_HBS = shifted_targets(
            batch.input_ids,
            is_target_BS=batch.is_target,
            document_ids_BS=batch.document_ids,
            num_heads=self.lesson.train.num_heads,
        )
        ids = tuple(example.problem_id for row in rows for example in row.examples)
        values_BS = None if values is None else lay_out(rows, values)
        return MicroBatch(batch, targets_HBS, values_BS, ids, self._numbers(rows, step))

    def _numbers(self, rows: Sequence[Row], step: int | None) -> torch.Tensor | None:
        method, seed = self.lesson.train.method, self.lesson.seed
        if step is None or not isinstance(method, LowRank) or method.dropout == 0:
            return None
        examples = [example for row in rows for example in row.examples]
        numbers = {
            one.problem_id: token_numbers(len(one), seed=seed, step=step, problem_id=one.problem_id) for one in examples
        }
        return lay_out(rows, numbers, dtype=np.int32)


def load_corpus(lesson: Lesson, *, data: Artifact, model: Artifact, scores: Artifact | None) -> Corpus:
    """Read and tokenise what a training learns from, once.

    Args:
        lesson: what is wanted.
        data: problems by split.
        model: its tokenizer is used.
        scores: of the training problems; None for the uniform scorer.

    Raises:
        UserError: no example is left to learn from, or a setting needs validation problems and there are none.
        DataError: the scores were made for other tokens.
    """
    assert (scores is None) == (lesson.scoring.scorer == "uniform"), f"{lesson.scoring.scorer} with scores: {scores}"
    tokenizer = load_tokenizer(model.folder("model"))
    shots = shots_of(read_problems(data.path("prompt.parquet")), lesson.text.prompt)
    problems = [
        problem
        for problem in read_problems(data.path("train.parquet"))
        if lesson.fold is None or fold_of(lesson.fold.seed, problem.id, lesson.fold.num_folds) != lesson.fold.fold
    ]
    examples, too_long = encode(problems, tokenizer, lesson.text, shots)
    validation, _ = encode(read_problems(data.path("validation.parquet")), tokenizer, lesson.text, shots)
    _require_enough(lesson, num_problems=len(problems), num_examples=len(examples), num_validation=len(validation))
    values = (
        None if scores is None else _values(lesson, examples, read_scores(scores.path("scores.parquet")), scores.uri)
    )
    return Corpus(lesson, tokenizer, examples, validation, len(too_long), values)


def _require_enough(lesson: Lesson, *, num_problems: int, num_examples: int, num_validation: int) -> None:
    if num_examples == 0:
        raise Unfit(
            f"Of {num_problems} training problems none has at most text.max_length={lesson.text.max_length} tokens. "
            "Raise text.max_length, or give more data."
        )
    train = lesson.train
    if num_validation == 0 and (train.keep == "best" or train.patience is not None):
        raise Unfit(
            f"train.keep is {train.keep!r} and train.patience is {train.patience}, but the data has no validation problems that fit "
            "text.max_length. Set keep to 'last' and patience to null, or give validation problems."
        )


def _values(lesson: Lesson, examples: Sequence[Example], scores: Mapping[str, ScoreRow], uri: str) -> Values:
    return {
        example.problem_id: _of_example(lesson.scoring, example, scores.get(example.problem_id), uri)
        for example in examples
    }


def _of_example(scoring: Scorer, example: Example, row: ScoreRow | None, uri: str) -> npt.NDArray[np.float32]:
    is_same = row is not None and np.array_equal(row.token_ids, example.token_ids)
    if row is None or not is_same or not np.array_equal(row.is_target, example.is_target):
        raise DataError(
            f"{uri} has {'no row' if row is None else f'a row of {len(row.token_ids)} other tokens or targets'} "
            f"for problem {example.problem_id}, which has {len(example)} tokens here. "
            "Score again with this data, tokenizer and text format."
        )
    if scoring.scorer != "rho1":
        return _present(row.score, "score", example, uri)
    reference = _present(row.reference_nats, "reference_nats", example, uri)
    if scoring.is_dynamic:
        return reference
    return excess(_present(row.base_nats, "base_nats", example, uri), reference, scoring.excess)


def _present(values: npt.NDArray[np.float32] | None, name: str, example: Example, uri: str) -> npt.NDArray[np.float32]:
    if values is None or not np.isfinite(values[example.is_target]).all():
        raise DataError(
            f"{uri} has {'no' if values is None else 'a non-finite'} {name} for problem {example.problem_id}. Score again with this recipe."
        )
    return values


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _without_targets(example: Example) -> Row:
    return Row((replace(example, is_target=np.zeros_like(example.is_target)),))
