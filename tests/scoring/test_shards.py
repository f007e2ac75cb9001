"""The stage that runs models over problems, on small real models and a real store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import bytes_tokenizer, write_model
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from mlops_tasks import logs
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.data.tokens import encode, fold_of
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.model import MtpModel
from mlops_tasks.scoring import merging
from mlops_tasks.scoring.candidates import Rewarded, write_rewards
from mlops_tasks.scoring.critic import HEADS_FILE, ValueNetwork, save_heads
from mlops_tasks.scoring.gate import Verdict
from mlops_tasks.scoring.scorers import ScoreRow, read_scores
from mlops_tasks.scoring.shards import example_losses, score_shard, tokenizer_difference
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

NUM_PROBLEMS = 70  # two blocks of 32 and a rest
RHO1 = {"scorer": "rho1", "mode": "dynamic"}
STATIC = {"scorer": "rho1", "mode": "static"}
MAX_LENGTH = 160
TEXT = Text(max_length=MAX_LENGTH)


def problem(number: int) -> Problem:
    name = f"add_{'x' * (number % 7)}"
    return Problem(
        id=str(number), prompt=f"Add {number} to a.", solution=f"def {name}(a):\n    return a + {number}\n",
        tests=(f"assert {name}(1) == {number + 1}",), entry_point=name, split="train", source="test", licence="MIT",
    )  # fmt: skip


PROBLEMS = [problem(number) for number in range(1, NUM_PROBLEMS)]
LONG = problem(NUM_PROBLEMS).model_copy(update={"prompt": "Add. " * 40})


def _write_seeded(seed: int, to: Path) -> None:
    write_model(to / "model", seed)


class Workplace:
    """A store with data and models, and a way to score in a number of shards."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.store = Store.open(environment.store)
        self.folder = folder
        self.inputs: dict[str, Artifact] = {}
        self.commit("data", self._write_data)
        for seed, name in enumerate(("model", "reference0", "reference1")):
            self.commit(name, partial(_write_seeded, seed))

    @staticmethod
    def _write_data(to: Path) -> None:
        write_problems(to / "train.parquet", [*PROBLEMS, LONG])
        write_problems(to / "prompt.parquet", [])

    def commit(self, name: str, write: Callable[[Path], object], metrics: dict[str, Any] | None = None) -> Artifact:
        draft = self.store.begin(f"{name}/{len(list(self.folder.iterdir()))}-{len(self.inputs)}")
        write(draft.folder)
        self.inputs[name] = self.store.commit(draft, {"metrics": metrics or {}})
        return self.inputs[name]

    def shard(
        self, scoring: dict[str, Any], *, index: int = 0, of: int = 1, **config: Any
    ) -> tuple[Path, dict[str, Any]]:
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        known = {"text": TEXT.model_dump(), "seed": 0, "fold": None, "shard": index, "num_shards": of}
        attempt = Attempt(
            {"scoring": scoring, **known, **config}, self.inputs, folder, self.environment, self.store, "key", "prefix"
        )
        metrics = score_shard(attempt)
        assert json.loads(json.dumps(metrics)) == metrics
        return folder / "scores.parquet", metrics

    def rows(self, scoring: dict[str, Any], **config: Any) -> dict[str, ScoreRow]:
        return read_scores(self.shard(scoring, **config)[0])

    def merged(self, scoring: dict[str, Any], *, of: int, **config: Any) -> tuple[bytes, dict[str, Any]]:
        for index in range(of):
            path, metrics = self.shard(scoring, index=index, of=of, **config)
            self.commit(f"shard{index}", partial(shutil.copy, path), metrics)
        folder = self.folder / f"merged{of}"
        folder.mkdir()
        result = merging.score(
            Attempt({"scoring": scoring}, self.inputs, folder, self.environment, self.store, "key", "prefix")
        )
        return (folder / "scores.parquet").read_bytes(), result


@pytest.fixture
def workplace(environment: Environment, tmp_path: Path) -> Workplace:
    (tmp_path / "results").mkdir()
    return Workplace(environment, tmp_path / "results")


def expected_nats(artifact: Artifact, number: int) -> list[float]:
    """transformers' own loss of each target, one token at a time, for one problem alone."""
    folder = artifact.folder("model")
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (example,), _ = encode([problem(number)], tokenizer, TEXT)
    ids = torch.from_numpy(example.token_ids)[None]
    nats = []
    for j in range(len(example)):
        labels = torch.where(torch.arange(len(example)) == j, ids, -100)
        nats.append(model(input_ids=ids, labels=labels).loss.item() if example.is_target[j] else 0.0)
    return nats


def test_reference_losses_equal_an_independent_transformers_loss_per_token(workplace: Workplace) -> None:
    rows = workplace.rows(RHO1)
    for number in (1, 33, 69):
        found = rows[str(number)].reference_nats
        assert found is not None
        assert found.tolist() == pytest.approx(expected_nats(workplace.inputs["reference0"], number), abs=1e-5)
        assert rows[str(number)].base_nats is None
        assert rows[str(number)].score is None


def test_rows_hold_the_example_itself(workplace: Workplace) -> None:
    (example,), _ = encode([problem(5)], bytes_tokenizer(), TEXT)
    row = workplace.rows({"scorer": "position"})["5"]
    assert row.token_ids.tolist() == example.token_ids.tolist()
    assert row.is_target.tolist() == example.is_target.tolist()
    learnt = bytes_tokenizer().decode(row.token_ids[row.is_target])
    assert learnt == problem(5).solution + "<end>"


def test_the_number_of_shards_changes_no_byte(workplace: Workplace) -> None:
    folds = {"num_folds": 2, "seed": 3}
    one, metrics = workplace.merged(STATIC, of=1, fold=folds)
    for of in (2, 4):
        several, same_metrics = workplace.merged(STATIC, of=of, fold=folds)
        assert several == one
        assert same_metrics == metrics
    assert metrics["num_problems"] == NUM_PROBLEMS - 1
    assert metrics["too_long"] == [LONG.id]
    assert metrics["mean_reference_nats"] == pytest.approx(np.log(258), abs=0.5)


def test_a_problem_is_scored_by_the_reference_that_did_not_see_its_fold(workplace: Workplace) -> None:
    rows = workplace.rows(RHO1, fold={"num_folds": 2, "seed": 3})
    folds = {number: fold_of(3, str(number), 2) for number in range(1, 9)}
    assert set(folds.values()) == {0, 1}
    for number, fold in folds.items():
        found = rows[str(number)].reference_nats
        assert found is not None
        assert found.tolist() == pytest.approx(expected_nats(workplace.inputs[f"reference{fold}"], number), abs=1e-5)


def test_static_keeps_the_bases_losses_beside_the_references(workplace: Workplace) -> None:
    row = workplace.rows(STATIC)["7"]
    assert row.base_nats is not None
    assert row.base_nats.tolist() == pytest.approx(expected_nats(workplace.inputs["model"], 7), abs=1e-5)
    assert row.reference_nats is not None
    assert row.reference_nats.tolist() != row.base_nats.tolist()


def test_a_reference_that_is_the_base_has_no_excess(workplace: Workplace) -> None:
    workplace.inputs["reference0"] = workplace.inputs["model"]
    for row in workplace.rows(STATIC).values():
        assert row.base_nats is not None
        assert row.reference_nats is not None
        assert row.reference_nats.tolist() == row.base_nats.tolist()


def test_shuffled_scores_are_the_static_excess_on_other_targets(workplace: Workplace) -> None:
    static, placebo = workplace.rows(STATIC), workplace.rows({"scorer": "shuffled"})
    for problem_id, row in placebo.items():
        base, reference = static[problem_id].base_nats, static[problem_id].reference_nats
        assert base is not None
        assert reference is not None
        assert row.score is not None
        true = (base - reference)[row.is_target]
        assert sorted(row.score[row.is_target]) == sorted(true)
        assert row.score[row.is_target].tolist() != true.tolist()
        assert row.reference_nats is None


@pytest.mark.parametrize("scorer", ["random", "position"])
def test_random_and_position_need_no_model_but_its_tokenizer(scorer: str, workplace: Workplace) -> None:
    del workplace.inputs["reference0"], workplace.inputs["reference1"]
    workplace.commit("model", lambda to: bytes_tokenizer().save_pretrained(to / "model"))
    rows = workplace.rows({"scorer": scorer})
    assert len(rows) == NUM_PROBLEMS - 1
    assert all(row.score is not None and np.isfinite(row.score).all() for row in rows.values())


def test_another_seed_gives_other_random_scores(workplace: Workplace) -> None:
    one, same, other = (workplace.rows({"scorer": "random"}, seed=seed)["9"].score for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.tolist() == same.tolist() != other.tolist()


CRITIC = {"scorer": "critic", "min_gain": 0.05}
REWARDED = {"1": 1.5, "2": -0.5, "3": 0.0, "40": 2.0}


def with_critic(workplace: Workplace, *, explained: float) -> list[ValueNetwork]:
    """Two heads with random weights, the verdict on them, and rewards of some problems' own solutions."""
    heads = [ValueNetwork(16, seed=seed) for seed in range(2)]
    for head in heads:
        torch.nn.init.normal_(head.outer.weight)
        head.standardise(3 + 2 * torch.randn(50, 16))

    def write(to: Path) -> None:
        save_heads(to / HEADS_FILE, heads)
        found = {"explained_variance": explained, "position_explained_variance": 0.1}
        Verdict(num_problems=40, num_folds=2, seed=3, **found).write(to)

    rows = [Rewarded(number, "reference", "x", 1.0, value) for number, value in REWARDED.items()]
    others = [Rewarded(number, "sampled", "y", 0.0, -7.0 if value else 0.0) for number, value in REWARDED.items()]
    workplace.commit("critic", write)
    workplace.commit("rewards", lambda to: write_rewards(to / "rewards.parquet", [*rows, *others]))
    return heads


def test_critic_scores_are_the_differences_of_the_values_of_the_head_that_did_not_see_the_problem(
    workplace: Workplace,
) -> None:
    heads = with_critic(workplace, explained=0.2)
    rows = workplace.rows(CRITIC)
    folder = workplace.inputs["model"].folder("model")
    base = LlamaForCausalLM.from_pretrained(folder)
    for number in (1, 2, 40):
        row = rows[str(number)]
        assert row.score is not None
        with torch.no_grad():
            hidden = base.model(input_ids=torch.tensor(row.token_ids)[None]).last_hidden_state[0]
            values = heads[fold_of(3, str(number), 2)](hidden).tolist()
        first, last = int(row.is_target.argmax()), len(row.token_ids) - 1
        # The value of the state before token j is at j - 1.
        expected = [values[j] - values[j - 1] for j in range(first, last)] + [REWARDED[str(number)] - values[last - 1]]
        assert row.score[row.is_target].tolist() == pytest.approx(expected, abs=1e-4)
        assert not row.score[~row.is_target].any()


def test_a_problem_without_signal_or_without_candidates_scores_nothing(workplace: Workplace) -> None:
    with_critic(workplace, explained=0.2)
    rows = workplace.rows(CRITIC)
    for number in ("3", "5"):
        score = rows[number].score
        assert score is not None
        assert not score.any()


def test_a_refused_critic_scores_nothing_and_the_manifest_and_the_log_say_so(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    with_critic(workplace, explained=0.14)
    _, metrics = workplace.merged(CRITIC, of=1)
    assert (metrics["critic_is_used"], metrics["num_weighed_problems"], metrics["min_gain"]) == (False, 0, 0.05)
    assert metrics["explained_variance"] == 0.14
    assert any(line.levelname == "WARNING" and "critic refused" in line.message for line in caplog.records)


def test_the_number_of_shards_changes_no_byte_of_a_critics_scores(workplace: Workplace) -> None:
    with_critic(workplace, explained=0.2)
    one, metrics = workplace.merged(CRITIC, of=1)
    assert workplace.merged(CRITIC, of=2) == (one, metrics)
    assert metrics["critic_is_used"]
    assert metrics["num_weighed_problems"] == 3
    assert metrics["critic_verdict"].startswith("critic used: explained variance 0.200 against 0.100")


def test_a_reference_with_another_tokenizer_is_refused_and_both_are_named(workplace: Workplace) -> None:
    other = bytes_tokenizer(eos_token="<pad>", pad_token="<end>")
    workplace.commit("reference0", lambda to: write_model(to / "model", 1, other))
    base, reference = (workplace.inputs[name].uri for name in ("model", "reference0"))
    with pytest.raises(
        UserError, match=rf"base model {base} and of the reference {reference} differ: eos_token is '<end>' in"
    ):
        workplace.rows(RHO1)


def test_tokenizers_differ_by_vocabulary_special_tokens_or_content() -> None:
    ours = bytes_tokenizer()
    assert tokenizer_difference(ours, bytes_tokenizer()) is None
    ours("some text", truncation=True, max_length=3)
    assert tokenizer_difference(ours, bytes_tokenizer()) is None
    larger = bytes_tokenizer()
    larger.add_tokens(["def"])
    assert tokenizer_difference(ours, larger) == (
        "1 pieces of the vocabulary have different ids, the first is 'def' with none and 258"
    )
    prefixed = bytes_tokenizer()
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer_difference(ours, prefixed) == "pre_tokenizer of tokenizer.json differ"


def test_a_broken_reference_is_an_error_that_names_it(workplace: Workplace) -> None:
    def broken(to: Path) -> None:
        write_model(to / "model", 1)
        model = LlamaForCausalLM.from_pretrained(to / "model")
        model.model.embed_tokens.weight.data[70] = torch.nan
        model.save_pretrained(to / "model")

    uri = workplace.commit("reference0", broken).uri
    with pytest.raises(DataError, match=f"The reference 0 {uri} gives problem 1 a loss that is not finite"):
        workplace.rows(RHO1)


def test_examples_longer_than_the_models_positions_are_refused(workplace: Workplace) -> None:
    with pytest.raises(UserError, match=r"text\.max_length is 300 but LlamaForCausalLM has 256 positions"):
        workplace.rows(RHO1, text=Text(max_length=300).model_dump())


def test_losses_come_in_the_order_of_the_examples_whatever_their_lengths() -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=256))
    model = MtpModel(base, num_heads=1, seed=0).eval()
    examples, _ = encode([problem(number) for number in (6, 1, 20, 3)], bytes_tokenizer(), TEXT)
    together = example_losses(model, examples, batch_rows=3)
    for example, nats in zip(examples, together, strict=True):
        assert len(nats) == len(example)
        assert nats == pytest.approx(example_losses(model, [example], batch_rows=1)[0], abs=1e-5)


def test_long_scoring_says_where_it_is(
    workplace: Workplace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level("INFO", logger="mlops_tasks"):
        workplace.rows(RHO1)
    assert any(line.startswith("score with the reference 0: 1 of 3, about") for line in caplog.messages)
