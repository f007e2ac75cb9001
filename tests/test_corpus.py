"""What a training learns from: which examples, in which order, dealt to whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlops_tasks.config.learning import Train
from mlops_tasks.config.sources import Text
from mlops_tasks.corpus import Corpus, Fold, Lesson, MicroBatch, Scorer, load_corpus
from mlops_tasks.data.problems import Problem, read_problems, write_problems
from mlops_tasks.data.tokens import Example, fold_of
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.scoring.scorers import ScoreRow, write_scores
from mlops_tasks.store import Artifact, Store


def lesson(**changes: Any) -> Lesson:
    train = {"num_heads": 2, "steps": 10, "batch_size": 4} | changes.pop("train", {})
    given = {
        "train": Train(**train),
        "text": Text(max_length=256),
        "scoring": Scorer(scorer="uniform"),
        "weighting": None,
        "seed": 0,
        "fold": None,
    }
    return Lesson(**{**given, **changes})


def corpus_of(lengths: list[int], **changes: Any) -> Corpus:
    """Examples of given lengths, each with one prompt token."""
    examples = [
        Example(str(number), np.arange(length, dtype=np.int64) + 1, np.arange(length) >= 1)
        for number, length in enumerate(lengths)
    ]
    return Corpus(lesson(**changes), byte_tokenizer(), examples, [], 0, None)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: number for number, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Problems and a tokenizer, committed."""
    store = Store.open(str(tmp_path_factory.mktemp("store")))
    data, model = store.begin("pull/data"), store.begin("pull/model")
    for split, ids in {"train": range(1, 21), "validation": range(21, 24), "prompt": range(0)}.items():
        problems = [
            Problem(
                id=str(number), prompt=f"Add {number}.", solution=f"def f(x):\n    return x + {number}\n",
                tests=(f"assert f(1) == {number + 1}",), entry_point="f", split=split, source="test", licence="unknown",
            )
            for number in ids
        ]  # fmt: skip
        write_problems(data.folder / f"{split}.parquet", problems)
    byte_tokenizer().save_pretrained(model.folder / "model")
    return {"data": store.commit(data, {}), "model": store.commit(model, {})}


def scores_artifact(folder: Path, corpus: Corpus, **changes: Any) -> Artifact:
    """Scores of the corpus's examples: the reference's nats of token j are j; `changes` are of problem 3's row."""
    store = Store.open(str(folder))
    rows = {
        example.problem_id: ScoreRow(
            token_ids=example.token_ids.astype(np.int32),
            is_target=example.is_target,
            reference_nats=np.arange(len(example), dtype=np.float32),
            base_nats=np.arange(len(example), dtype=np.float32) * 3,
        )
        for example in corpus.examples
    }
    rows["3"] = dataclasses.replace(rows["3"], **changes)
    draft = store.begin("score/k")
    write_scores(draft.folder / "scores.parquet", rows)
    return store.commit(draft, {})


RHO1 = {"scoring": Scorer(scorer="rho1", mode="dynamic"), "weighting": {"kind": "soft"}}


def test_each_epoch_is_another_permutation_of_all_problems() -> None:
    corpus = corpus_of([5] * 8)
    drawn = [example.problem_id for step in range(4) for example in corpus.of_step(step)]
    first, second = drawn[:8], drawn[8:]
    assert sorted(first) == sorted(second) == [str(number) for number in range(8)]
    assert first != second
    assert drawn == [example.problem_id for step in range(4) for example in corpus_of([5] * 8).of_step(step)]
    assert drawn != [example.problem_id for step in range(4) for example in corpus_of([5] * 8, seed=1).of_step(step)]


def test_epochs_end_where_the_problems_do() -> None:
    corpus = corpus_of([5] * 10, train={"steps": None, "epochs": 1.0, "batch_size": 4})
    assert corpus.num_steps == 3
    assert [len(corpus.of_step(step)) for step in range(3)] == [4, 4, 2]
    assert corpus_of([5] * 10, train={"steps": None, "epochs": 0.5, "batch_size": 4}).num_draws == 5


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 8])
def test_ranks_and_micro_batches_share_the_same_targets(num_ranks: int, num_rows: int) -> None:
    corpus = corpus_of([100, 60, 90, 30, 200, 10, 110, 50])
    micro_batches = [
        micro
        for rank in range(num_ranks)
        for micro in corpus.micro_batches(corpus.examples, None, rank=rank, num_ranks=num_ranks, num_rows=num_rows)
    ]
    assert max(len(micro.batch.input_ids) for micro in micro_batches) <= num_rows
    # An example of n tokens has n-1 targets for head 1, and n-2 for head 2, which cannot see the first one.
    assert torch.stack([micro.num_targets_H() for micro in micro_batches]).sum(0).tolist() == [
        650 - 8,
        650 - 16 + 8 - 8,
    ]


def test_rank_without_rows_gets_one_without_targets() -> None:
    corpus = corpus_of([40, 40])
    (micro,) = corpus.micro_batches(corpus.examples, None, rank=1, num_ranks=2, num_rows=8)
    assert micro.num_targets_H().tolist() == [0, 0]
    assert (micro.batch.document_ids >= 0).any()


def test_sample_contains_the_solution_and_nothing_of_the_prompt_is_a_target(artifacts: dict[str, Artifact]) -> None:
    corpus = load_corpus(lesson(), scores=None, **artifacts)
    example = corpus.examples[0]
    learnt = corpus.tokenizer.decode(example.token_ids[example.is_target].tolist())
    assert "return x + 1" in learnt
    assert "Add 1" not in learnt
    assert "Add 1" in corpus.tokenizer.decode(example.token_ids.tolist())


def test_held_fold_is_left_out_and_validation_is_not(artifacts: dict[str, Artifact]) -> None:
    whole = load_corpus(lesson(), scores=None, **artifacts)
    part = load_corpus(lesson(fold=Fold(num_folds=2, fold=1, seed=5)), scores=None, **artifacts)
    held = [one.problem_id for one in whole.examples if fold_of(5, one.problem_id, 2) == 1]
    assert held
    assert {one.problem_id for one in part.examples} == {one.problem_id for one in whole.examples} - set(held)
    assert len(part.validation) == len(whole.validation) == 3


def test_too_long_problems_are_counted(artifacts: dict[str, Artifact]) -> None:
    whole = load_corpus(lesson(), scores=None, **artifacts)
    longest = max(map(len, whole.examples))
    short = load_corpus(lesson(text=Text(max_length=longest - 1)), scores=None, **artifacts)
    assert short.num_too_long == sum(len(one) == longest for one in whole.examples) > 0
    assert len(short.examples) == 20 - short.num_too_long


def test_nothing_that_fits_is_an_error(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(UserError, match=r"Of 20 training problems none has at most text\.max_length=16 tokens"):
        load_corpus(lesson(text=Text(max_length=16)), scores=None, **artifacts)


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"patience": 2}])
def test_best_and_patience_need_validation_problems(
    tmp_path: Path, artifacts: dict[str, Artifact], setting: dict[str, Any]
) -> None:
    store = Store.open(str(tmp_path))
    draft = store.begin("pull/data")
    for split in ("train", "validation", "prompt"):
        problems = read_problems(artifacts["data"].path(f"{split}.parquet")) if split == "train" else []
        write_problems(draft.folder / f"{split}.parquet", problems)
    data = store.commit(draft, {})
    with pytest.raises(UserError, match="the data has no validation problems"):
        load_corpus(lesson(train=setting), data=data, model=artifacts["model"], scores=None)
    assert load_corpus(lesson(), data=data, model=artifacts["model"], scores=None).validation == []


def test_dynamic_values_are_the_references_nats_where_their_tokens_lie(
    tmp_path: Path, artifacts: dict[str, Artifact]
) -> None:
    scores = scores_artifact(tmp_path, load_corpus(lesson(), scores=None, **artifacts))
    corpus = load_corpus(lesson(**RHO1), scores=scores, **artifacts)
    micro = values_of(corpus)
    assert micro.values_BS is not None
    is_token = micro.batch.document_ids >= 0
    assert torch.equal(micro.values_BS[is_token], micro.batch.position_ids[is_token].float())


def test_static_values_are_the_excess_of_the_base(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    scores = scores_artifact(tmp_path, load_corpus(lesson(), scores=None, **artifacts))
    static = Scorer(scorer="rho1", mode="static", excess="signed")
    micro = values_of(load_corpus(lesson(scoring=static, weighting={"kind": "soft"}), scores=scores, **artifacts))
    assert micro.values_BS is not None
    is_token = micro.batch.document_ids >= 0
    assert torch.equal(micro.values_BS[is_token], 2 * micro.batch.position_ids[is_token].float())


def values_of(corpus: Corpus) -> MicroBatch:
    (micro,) = corpus.micro_batches(corpus.examples, corpus.values, rank=0, num_ranks=1, num_rows=100)
    return micro


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": np.array([1, 2], np.int32)}, "a row of 2 other tokens or targets for problem 3"),
        ({"is_target": np.zeros(97, np.bool_)}, "other tokens or targets for problem 3"),
        ({"reference_nats": np.full(200, np.nan, np.float32)}, "a non-finite reference_nats for problem 3"),
    ],
)
def test_scores_of_other_tokens_are_refused(
    tmp_path: Path, artifacts: dict[str, Artifact], change: dict[str, Any], message: str
) -> None:
    corpus = load_corpus(lesson(), scores=None, **artifacts)
    length = len(next(one for one in corpus.examples if one.problem_id == "3"))
    shaped = {name: value if name == "token_ids" else np.resize(value, length) for name, value in change.items()}
    scores = scores_artifact(tmp_path, corpus, **shaped)
    with pytest.raises(DataError, match=message):
        load_corpus(lesson(**RHO1), scores=scores, **artifacts)


def test_missing_row_and_missing_column_are_refused(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    corpus = load_corpus(lesson(), scores=None, **artifacts)
    few = dataclasses.replace(corpus, examples=corpus.examples[:5])
    scores = scores_artifact(tmp_path, few)
    with pytest.raises(DataError, match="has no row for problem 6"):
        load_corpus(lesson(**RHO1), scores=scores, **artifacts)
    with pytest.raises(DataError, match="has no score for problem 1"):
        load_corpus(lesson(scoring=Scorer(scorer="position"), weighting={"kind": "soft"}), scores=scores, **artifacts)
