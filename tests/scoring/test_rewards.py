"""Candidates and what they are worth, with a real model, a real sandbox and a real store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import bytes_tokenizer, write_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from mlops_tasks import keys, parcel, parts, pipeline
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.errors import DataError, Unfit, UserError
from mlops_tasks.evaluation import generation
from mlops_tasks.scoring import rewards
from mlops_tasks.scoring.candidates import Rewarded, read_rewards, standardised, write_rewards
from mlops_tasks.scoring.reward_model import model_rewards
from mlops_tasks.scoring.rewards import Candidate, RewardConfig, edited, reward
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

needs_sandbox = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

SIGN = "def sign(a):\n    if a > 0:\n        return 1\n    return 0\n"
SAME = "def same(a):\n    return a\n"


def problem(number: int, solution: str, *tests: str) -> Problem:
    name = solution[4 : solution.index("(")]
    return Problem(
        id=str(number), prompt=f"Write {name}.", solution=solution, tests=tests, entry_point=name, split="train", source="test", licence="MIT",
    )  # fmt: skip


PROBLEMS = [
    problem(1, SIGN, "assert sign(5) == 1", "assert sign(0) == 0", "assert sign(-3) == 0", "assert sign(1) == 1"),
    problem(2, SAME, "assert same(4) == 4"),
    problem(3, "def double(a):\n    return a * 2\n", "assert double(2) == 4", "assert double(3) == 6"),
]
CONFIG: dict[str, Any] = {
    "reward": "tests", "candidates": {"num_samples": 0, "num_mutants": 20}, "text": {"max_length": 200}, "max_new_tokens": 6,
    "precision": "float32", "min_seconds": 1.0, "reference_factor": 5.0, "seed": 0,
}  # fmt: skip


def write_data(to: Path, problems: list[Problem]) -> None:
    write_problems(to / "train.parquet", problems)
    write_problems(to / "prompt.parquet", [])


class Workplace:
    """A store with three problems and a model that writes nonsense."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.store = Store.open(environment.store)
        self.inputs: dict[str, Artifact] = {}
        self.commit("data", lambda to: write_data(to, PROBLEMS))
        self.commit("model", lambda to: write_model(to / "model", 0))

    def commit(self, name: str, write: Callable[[Path], object]) -> None:
        draft = self.store.begin(f"{name}/{len(list(self.folder.iterdir()))}-{len(self.inputs)}")
        write(draft.folder)
        self.inputs[name] = self.store.commit(draft, {"metrics": {}})

    def attempt(self, **changes: Any) -> Attempt:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        return Attempt(CONFIG | changes, self.inputs, folder, self.environment, self.store, "key", "reward/key")

    def rewarded(self, **changes: Any) -> tuple[list[Rewarded], dict[str, Any]]:
        attempt = self.attempt(**changes)
        metrics = reward(attempt)
        assert json.loads(json.dumps(metrics)) == metrics
        return read_rewards(attempt.folder / "rewards.parquet"), metrics


@pytest.fixture
def workplace(environment: Environment, tmp_path: Path) -> Workplace:
    (tmp_path / "results").mkdir()
    return Workplace(environment, tmp_path / "results")


@needs_sandbox
def test_the_reward_of_a_mutant_is_the_share_of_the_tests_that_it_passes(workplace: Workplace) -> None:
    rows, metrics = workplace.rewarded()
    of_sign = {row.solution: row.reward for row in rows if row.problem_id == "1"}
    assert of_sign == {
        SIGN: 1.0,
        SIGN.replace("a > 0", "a >= 0"): 0.75,
        SIGN.replace("a > 0", "a > 1"): 0.75,
        SIGN.replace("a > 0", "a > -1"): 0.75,
        SIGN.replace("return 1", "return 0"): 0.5,
        SIGN.replace("return 1", "return 2"): 0.5,
        SIGN.replace("return 1", "pass"): 0.5,
        SIGN.replace("return 0", "return 1"): 0.5,
        SIGN.replace("return 0", "return -1"): 0.5,
        SIGN.replace("    return 0\n", ""): 0.5,
    }
    assert metrics["num_candidates"] == {"reference": 3, "sampled": 0, "operator": 2, "constant": 8, "line": 4}
    assert metrics["mean_reward"]["reference"] == 1.0
    assert metrics["num_without_signal"] == metrics["num_unsupported"] == 0


@needs_sandbox
def test_rewards_are_standardised_within_each_problem(workplace: Workplace) -> None:
    rows, _ = workplace.rewarded()
    for number in ("1", "2", "3"):
        mine = [row for row in rows if row.problem_id == number]
        assert sum(row.standardised for row in mine) == pytest.approx(0, abs=1e-9)
        assert sum(row.standardised**2 for row in mine) / len(mine) == pytest.approx(1)
    # The identity passes and `pass` does not.
    assert [row.standardised for row in rows if row.problem_id == "2"] == [1, -1]


def test_equal_rewards_are_worth_nothing() -> None:
    assert standardised([0.25, 0.25, 0.25]) == [0, 0, 0]
    assert standardised([1, 0, 0, 1]) == [1, -1, -1, 1]


@needs_sandbox
def test_a_problem_whose_candidates_all_have_one_reward_gives_no_signal_and_is_counted(workplace: Workplace) -> None:
    loose = problem(4, "def loose(a):\n    return a + 1\n", "assert loose(1) != 99")
    workplace.commit("data", lambda to: write_data(to, [*PROBLEMS, loose]))
    rows, metrics = workplace.rewarded()
    mine = [row for row in rows if row.problem_id == "4"]
    assert [row.reward for row in mine] == [1.0] * 5
    assert [row.standardised for row in mine] == [0.0] * 5
    assert (metrics["num_problems"], metrics["num_without_signal"]) == (4, 1)


@needs_sandbox
def test_samples_are_judged_in_the_form_in_which_solutions_are_learnt(workplace: Workplace) -> None:
    rows, metrics = workplace.rewarded(candidates={"num_samples": 2, "num_mutants": 1, "num_problems": 2})
    assert [row.origin for row in rows if row.problem_id == "2"] == ["reference", "line", "sampled", "sampled"]
    assert metrics["num_candidates"]["sampled"] == 4
    assert metrics["mean_reward"]["sampled"] == 0
    same, _ = workplace.rewarded(candidates={"num_samples": 2, "num_mutants": 1, "num_problems": 2})
    assert same == rows


@needs_sandbox
def test_a_model_that_writes_the_problems_own_solution_adds_no_candidate(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = Candidate.of(PROBLEMS[1], SAME, "sampled", Text())
    monkeypatch.setattr(rewards, "_sampled", lambda *_: [same])
    rows, _ = workplace.rewarded(candidates={"num_samples": 1, "num_mutants": 1})
    assert [row.origin for row in rows if row.problem_id == "2"] == ["reference", "line"]


@needs_sandbox
def test_what_was_written_before_a_kill_is_not_written_again(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_PARTS", 0)
    wanted = {"num_samples": 2, "num_mutants": 1}
    expected, _ = workplace.rewarded(candidates=wanted)
    asked: list[int] = []
    decode = generation.decode

    def counted(model: Any, requests: Any, **named: Any) -> Any:
        asked.append(len(requests))
        return decode(model, requests, **named)

    monkeypatch.setattr(generation, "decode", counted)
    found, _ = workplace.rewarded(candidates=wanted)
    assert asked == [0]
    assert found == expected


@needs_sandbox
def test_a_process_that_never_sees_the_store_comes_to_the_same_rewards(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_PARTS", 0.0)  # it puts rows away, in a place of its own
    asked = {"candidates": {"num_samples": 1, "num_mutants": 5}}
    rows, _ = workplace.rewarded(**asked)
    here = workplace.attempt(**asked)
    stage = pipeline.REWARD
    build = keys.key_components(
        stage=stage.name, generation=stage.generation, function=stage.function, config={}, inputs={}, packages=stage.packages
    )  # fmt: skip
    parcel.pack(here, {name: ["*"] for name in here.inputs}, tmp_path / "there.tar", build=build)

    parcel.carry_out(reward, tmp_path / "there.tar", tmp_path / "back.tar")

    metrics = parcel.unpack_result(tmp_path / "back.tar", here.folder)
    assert read_rewards(here.folder / "rewards.parquet") == rows
    assert metrics["num_candidates"]["sampled"] > 0


@needs_sandbox
def test_a_problems_own_solution_that_fails_is_an_error(workplace: Workplace) -> None:
    workplace.commit("data", lambda to: write_data(to, [problem(1, SAME, "assert same(1) == 2")]))
    with pytest.raises(DataError, match="own solutions do not pass their tests: 1"):
        workplace.rewarded()


def test_a_mistake_in_what_the_prompt_gives_is_no_candidate() -> None:
    prompt = "LIMIT = 3\n\n\ndef below(a):\n"
    whole = problem(1, "def x(): 0", "assert below(2)").model_copy(
        update={"prompt": prompt, "solution": f"{prompt}    return a < LIMIT\n", "entry_point": "below"}
    )
    config = RewardConfig.model_validate(CONFIG | {"text": {"prompt": "humaneval-completion"}})
    own, *others = edited(whole, config)
    assert own.completion == "    return a < LIMIT\n"
    assert {one.completion for one in others} == {"    return a <= LIMIT\n", "    pass\n"}


def test_a_table_of_rewards_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [Rewarded("2", "reference", "a", 1.0, 1.0), Rewarded("2", "line", "b", 0.25, -1.0)]
    write_rewards(tmp_path / "rewards.parquet", rows)
    assert read_rewards(tmp_path / "rewards.parquet") == rows
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"has the columns \['x'\] instead of .*Reward again"):
        read_rewards(tmp_path / "other.parquet")


def write_reward_model(folder: Path, *, num_labels: int = 1, chat_template: str | None = None) -> None:
    torch.manual_seed(3)
    shape: dict[str, Any] = {
        "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "pad_token_id": 1
    }  # fmt: skip
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=num_labels)).save_pretrained(folder)
    tokenizer = bytes_tokenizer()
    # As Llama's: the pair begins twice.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", pair="<end> $A <end> $B:1", special_tokens=[("<end>", 0)]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<end>{% endfor %}"


@pytest.mark.parametrize("chat_template", [None, CHAT])
def test_a_reward_models_reward_is_its_only_logit_of_task_and_answer(
    workplace: Workplace, chat_template: str | None
) -> None:
    workplace.commit("reward_model", lambda to: write_reward_model(to / "model", chat_template=chat_template))
    limits = {"min_seconds": None, "reference_factor": None}
    rows, _ = workplace.rewarded(reward="model", candidates={"num_samples": 0, "num_mutants": 2}, **limits)
    model = LlamaForSequenceClassification.from_pretrained(workplace.inputs["reward_model"].folder("model"))
    asked = '"""\nWrite same.\nassert same(4) == 4\n"""\n'
    for row in rows:
        if row.problem_id == "2":
            if chat_template is None:
                ids = [2 + letter for letter in encoded(asked + row.solution)]
            else:
                user, assistant = encoded(f"user: {asked}"), encoded(f"assistant: {row.solution}")
                ids = [*(2 + letter for letter in user), 0, *(2 + letter for letter in assistant), 0]
            assert row.reward == pytest.approx(model(input_ids=torch.tensor([ids])).logits.item(), abs=1e-5)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "write", "f", "SEP", "return", "a"]


def write_encoder(folder: Path) -> None:
    """A reward model of BERT's kind: its tokenizer marks where task and answer begin and end, and it has 12 positions."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=names, **special).save_pretrained(folder)
    shape = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 12,
    }  # fmt: skip
    config = BertConfig(vocab_size=len(WORDS), num_labels=1, initializer_range=0.5, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)


def test_an_encoder_is_given_task_and_answer_as_the_pair_that_it_learnt_from(workplace: Workplace) -> None:
    workplace.commit("reward_model", lambda to: write_encoder(to / "model"))
    artifact = workplace.inputs["reward_model"]
    model = BertForSequenceClassification.from_pretrained(artifact.folder("model")).eval()
    # [CLS] write f [SEP] return [ SEP ] [SEP]: what an answer holds is no mark.
    ids, segments = [2, 6, 7, 3, 9, 4, 8, 5, 3], [0, 0, 0, 0, 1, 1, 1, 1, 1]
    expected = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments])).logits.item()
    assert model_rewards(artifact, [("write f", "return [SEP]")]) == [pytest.approx(expected, abs=1e-6)]
    with pytest.raises(
        Unfit,
        match=r"'return a a .*' has 13 tokens with its task, and the reward model .* takes 12\. Set scoring\.reward",
    ):
        model_rewards(artifact, [("write f", "return" + 7 * " a")])


def encoded(text: str) -> list[int]:
    """Places of a text's bytes in the byte-level alphabet."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [letters.index(letter) for piece, _ in pieces for letter in piece]


def test_a_model_with_two_labels_or_without_a_head_is_no_reward_model(workplace: Workplace) -> None:
    changes = {"reward": "model", "min_seconds": None, "reference_factor": None}
    workplace.commit("reward_model", lambda to: write_reward_model(to / "model", num_labels=2))
    with pytest.raises(UserError, match=r"has 2 labels and lacks the weights none\. A reward model has one label"):
        workplace.rewarded(**changes)
    workplace.inputs["reward_model"] = workplace.inputs["model"]
    with pytest.raises(UserError, match=r"lacks the weights score\.weight"):
        workplace.rewarded(**changes)
