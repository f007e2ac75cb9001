"""The stage `train` on models of two layers: the same however it is cut up, killed or resumed; and what it writes.

Trainings that are stopped or killed, or have two ranks, run in processes of their own (see `train_process`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from train_process import ClosedToRank1, NotesReads, SlowToCommit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mlops_tasks import checkpoint, distributed, logs, optimization, precision, tracking, training
from mlops_tasks.config.environment import Environment, TrainResources
from mlops_tasks.config.learning import SoftWeights, Train
from mlops_tasks.config.sources import Text
from mlops_tasks.corpus import MicroBatch
from mlops_tasks.data.problems import Problem, read_problems, write_problems
from mlops_tasks.data.tokens import Example, Row, encode
from mlops_tasks.errors import DataError, Interrupted, NotFinite, OutOfMemory, Unavailable, UserError
from mlops_tasks.loss import at_tokens, token_losses
from mlops_tasks.model import MtpModel
from mlops_tasks.objective import StepSums, WeightedLoss
from mlops_tasks.pretrained import UnreadModel
from mlops_tasks.scoring.scorers import ScoreRow, write_scores
from mlops_tasks.scoring.weights import document_weights
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

# Parts of a spec that differ from the plain one below.
RHO1 = {"scoring": {"scorer": "rho1", "mode": "dynamic", "excess": "signed"}, "weighting": {"kind": "soft"}}
POSITION = {"scoring": {"scorer": "position"}, "weighting": {"kind": "soft"}}
TEXT = Text(max_length=256)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def inputs(store: Store) -> dict[str, Artifact]:
    """Problems of uneven length, two models that share a tokenizer of bytes, and scores."""
    data = store.begin("pull/data")
    for split, ids in {"train": range(1, 21), "validation": range(21, 25), "prompt": range(0)}.items():
        write_problems(data.folder / f"{split}.parquet", [problem(number, split) for number in ids])
    found = {"data": store.commit(data, {})}
    tokenizer = byte_tokenizer()
    for name, model in {"model": llama(len(tokenizer)), "gpt2": gpt2(len(tokenizer))}.items():
        draft = store.begin(f"pull/{name}")
        model.save_pretrained(draft.folder / "model")
        tokenizer.save_pretrained(draft.folder / "model")
        found[name] = store.commit(draft, {})
    scores = store.begin("score/k")
    rows = {example.problem_id: row(example) for example in examples(found)}
    write_scores(scores.folder / "scores.parquet", rows)
    return {**found, "scores": store.commit(scores, {})}


def problem(number: int, split: str) -> Problem:
    body = "".join(f"    x = x + {step}\n" for step in range(number % 5))
    return Problem(
        id=str(number),
        prompt=f"Add {number}.",
        solution=f"def f(x):\n{body}    return x\n",
        tests=("assert f(1)",),
        entry_point="f",
        split=split,
        source="test",
        licence="unknown",
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: number for number, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def llama(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
    )


def gpt2(vocab_size: int) -> GPT2LMHeadModel:
    """With dropout in its configuration, whose masks would depend on ranks and micro-batches."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
        )
    )


def examples(inputs: Mapping[str, Artifact]) -> list[Example]:
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"].folder("model"))
    return encode(read_problems(inputs["data"].path("train.parquet")), tokenizer, TEXT)[0]


def row(example: Example) -> ScoreRow:
    rng = np.random.default_rng(int(example.problem_id))
    nats = rng.exponential(2, len(example)).astype(np.float32) * example.is_target
    return ScoreRow(example.token_ids.astype(np.int32), example.is_target, reference_nats=nats, score=-nats)


@dataclass(frozen=True)
class Given:
    """What attempts are made of."""

    store: Store
    inputs: dict[str, Artifact]
    scratch: Path

    def attempt(
        self,
        name: str,
        *,
        model: str = "model",
        train: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> Attempt:
        """A training of 6 steps of 8 problems; attempts of one name share their checkpoints."""
        wanted = {"num_heads": 3, "steps": 6, "batch_size": 8, "learning_rate": 1e-2, "validate_every_steps": 2}
        plain = {"scoring": {"scorer": "uniform"}, "weighting": None, "seed": 0, "fold": None}
        config = {**plain, **spec, "text": TEXT, "train": Train(**{**wanted, **(train or {})})}
        folder = self.scratch / f"{name}-{len(list(self.scratch.iterdir()))}"
        folder.mkdir()
        used = ["data"] + ["scores"] * (config["scoring"] != plain["scoring"])
        return Attempt(
            config=json.loads(json.dumps(config, default=lambda part: part.model_dump(mode="json"))),
            inputs={**{one: self.inputs[one] for one in used}, "model": self.inputs[model]},
            folder=folder,
            environment=Environment(
                store=self.store.uri, mlflow_uri="http://127.0.0.1:9", train=TrainResources(**(resources or {}))
            ),
            store=self.store,
            key=name,
            prefix=f"train/{self.scratch.name}-{name}",
        )


@pytest.fixture
def given(store: Store, inputs: dict[str, Artifact], tmp_path: Path) -> Given:
    return Given(store, inputs, tmp_path)


def curves(attempt: Attempt, kind: str = "loss") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (attempt.folder / "curves.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in line]


def files(attempt: Attempt) -> dict[str, bytes]:
    return {
        path.relative_to(attempt.folder).as_posix(): path.read_bytes()
        for path in attempt.folder.rglob("*")
        if path.is_file()
    }


def weights(attempt: Attempt) -> dict[str, torch.Tensor]:
    return load_file(attempt.folder / "model" / "model.safetensors")


def require_close(found: Attempt, expected: Attempt) -> None:
    """The same losses, gradients and weights up to the order of additions."""
    assert len(curves(found)) == len(curves(expected)) > 0
    for mine, other in zip(curves(found), curves(expected), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["head_nats"] == pytest.approx(other["head_nats"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert mine["weight_ess"] == pytest.approx(other["weight_ess"], rel=1e-5)
    for mine, other in zip(curves(found, "validation_nats"), curves(expected, "validation_nats"), strict=True):
        assert mine["validation_head_nats"] == pytest.approx(other["validation_head_nats"], rel=1e-5)


# However it is cut up


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_do_not_change_a_step(given: Given, rows: int) -> None:
    whole, cut = (given.attempt(f"rows{n}", resources={"micro_batch_rows": n}, **RHO1) for n in (8, rows))
    training.train(whole)
    training.train(cut)
    require_close(cut, whole)


def test_chunks_of_the_loss_are_as_large_as_the_environment_says(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = MtpModel.head_logits, set[int]()

    def head_logits(model: MtpModel, hidden_ND: torch.Tensor, head: int) -> torch.Tensor:
        seen.add(len(hidden_ND))
        return plain(model, hidden_ND, head)

    monkeypatch.setattr(MtpModel, "head_logits", head_logits)
    whole, cut = (given.attempt(f"chunks{n}", resources={"loss_chunk_rows": n}, **RHO1) for n in (1024, 50))
    training.train(whole)
    assert max(seen) > 100
    seen.clear()
    training.train(cut)
    assert max(seen) == 50
    require_close(cut, whole)


def test_two_runs_of_a_seed_are_identical_and_another_seed_differs(given: Given) -> None:
    first, second, other = (
        given.attempt(name, model="gpt2", seed=seed, **RHO1) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    for attempt in (first, second, other):
        training.train(attempt)
    assert files(first) == files(second)
    assert files(first)["model/model.safetensors"] != files(other)["model/model.safetensors"]


def test_strength_0_is_the_uniform_training_bit_for_bit(given: Given) -> None:
    uniform, weighted = (
        given.attempt("uniform"),
        given.attempt("none", **{**RHO1, "weighting": {"kind": "soft", "strength": 0}}),
    )
    training.train(uniform)
    training.train(weighted)
    assert files(uniform)["model/model.safetensors"] == files(weighted)["model/model.safetensors"]


# Ranks, signals and death


@dataclass(frozen=True)
class Processes:
    """Starts trainings in processes of their own."""

    server: subprocess.Popen[str]
    scratch: Path

    def ask(self, request: str) -> int:
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(f"{request}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, attempt: Attempt) -> int:
        path = attempt.folder.with_suffix(".pickle")
        path.write_bytes(pickle.dumps(attempt))
        return self.ask(str(path))

    def end(self, process: int) -> int:
        return self.ask(f"wait {process}")

    def train(self, attempt: Attempt) -> dict[str, Any]:
        assert self.end(self.start(attempt)) == 0
        metrics: dict[str, Any] = json.loads(attempt.folder.with_suffix(".json").read_text())
        return metrics


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    if sys.platform != "linux":
        pytest.skip("watches processes in /proc")
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("train_process.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:
        yield Processes(server, tmp_path_factory.mktemp("processes"))
        assert server.stdin
        server.stdin.close()


def wait_for(is_so: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def checkpoints(attempt: Attempt) -> list[int]:
    return checkpoint.steps(attempt.store, attempt.prefix)


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def slowly(attempt: Attempt) -> Attempt:
    """With time between two checkpoints in which it can be stopped."""
    return replace(attempt, store=Store(SlowToCommit(Path(attempt.store.uri))))


def long(given: Given, name: str, *, num_ranks: int) -> Attempt:
    resources = {"checkpoint_every_steps": 2, "num_ranks": num_ranks}
    train = {"steps": 24, "validate_every_steps": 12}
    return given.attempt(name, model="gpt2", train=train, resources=resources, **RHO1)


def test_dropout_of_a_model_does_not_make_a_step_depend_on_micro_batches(given: Given) -> None:
    whole, cut = (given.attempt(f"gpt2-{n}", model="gpt2", resources={"micro_batch_rows": n}) for n in (8, 1))
    training.train(whole)
    training.train(cut)
    require_close(cut, whole)


def test_two_ranks_equal_one_process(given: Given, processes: Processes) -> None:
    # In a batch of 20 problems the ranks get 4 rows and 3; in a batch of one problem the second rank gets none.
    for size in (20, 1):
        alone, both = (
            given.attempt(
                f"{n}x{size}",
                train={"batch_size": size, "steps": 4},
                resources={"num_ranks": n, "micro_batch_rows": 1},
                **RHO1,
            )
            for n in (1, 2)
        )
        training.train(alone)
        processes.train(both)
        require_close(both, alone)


@pytest.mark.parametrize("model", ["model", "gpt2"])
def test_a_model_in_parts_on_two_ranks_equals_one_process(given: Given, processes: Processes, model: str) -> None:
    # In parts from the start: an optimiser that is made behind a probe must not know copies.
    assert UnreadModel(given.inputs[model].folder("model")).is_readable
    # Seven rows: four micro-batches for one rank, three and one without targets for the other.
    alone, parts = (
        given.attempt(
            f"{model}-{ways.get('parallelism', 'alone')}",
            model=model,
            train={"batch_size": 20, "steps": 4, "head_warmup_steps": 1, "gradient_clip": 0.5},
            resources={"micro_batch_rows": 1, **ways},
            **RHO1,
        )
        for ways in ({}, {"num_ranks": 2, "parallelism": "fsdp", "recompute_activations": True})
    )
    training.train(alone)
    processes.train(parts)
    require_close(parts, alone)
    mine, other = weights(parts), weights(alone)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)
    assert files(parts).keys() == files(alone).keys()


def test_a_training_goes_on_with_other_ranks_and_the_other_way(
    given: Given, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first, second, third = (
        # A validation, which is a forward without a backward, before each checkpoint.
        given.attempt(name, train={"steps": 9, "keep": "best", "validate_every_steps": 1}, resources=resources, **RHO1)
        for name, resources in [
            ("whole", {}),
            ("moved", {}),
            ("moved", {"num_ranks": 2, "parallelism": "fsdp", "checkpoint_every_steps": 1}),
            ("moved", {"num_ranks": 2}),
        ]
    )
    training.train(whole)
    with stopping_at(monkeypatch, 3), pytest.raises(Interrupted, match="stopped at step 3 of 9"):
        training.train(first)
    process = processes.start(slowly(second))
    wait_for(lambda: checkpoints(second)[-1] >= 5)
    os.kill(process, signal.SIGTERM)
    assert processes.end(process) == Interrupted.exit_code
    stopped_at = checkpoints(second)[-1]
    assert 5 <= stopped_at < 9
    assert processes.train(third)["resumed_from"] == stopped_at
    require_close(third, whole)


def test_recomputed_activations_change_nothing(given: Given) -> None:
    plain, again = (
        given.attempt(f"again-{wanted}", resources={"recompute_activations": wanted}, **RHO1)
        for wanted in (False, True)
    )
    training.train(plain)
    training.train(again)
    assert files(plain) == files(again)


def test_killed_training_resumes_to_the_same_bytes(given: Given, processes: Processes) -> None:
    unbroken, broken, resumed = (long(given, name, num_ranks=1) for name in ("unbroken", "broken", "broken"))
    processes.train(unbroken)
    process = processes.start(slowly(broken))
    wait_for(lambda: len(checkpoints(broken)) >= 2)
    os.kill(process, signal.SIGKILL)
    assert processes.end(process) == -signal.SIGKILL
    assert not (broken.folder / "curves.jsonl").exists()
    newest = checkpoints(broken)[-1]
    assert processes.train(resumed)["resumed_from"] == newest
    assert files(resumed) == files(unbroken)


def test_sigterm_checkpoints_and_all_ranks_resume_to_the_same_bytes(given: Given, processes: Processes) -> None:
    # With two ranks a sum is the same in any order; of three it is not.
    unbroken, broken, resumed = (long(given, name, num_ranks=3) for name in ("unbroken", "broken", "broken"))
    processes.train(unbroken)
    process = processes.start(slowly(broken))
    wait_for(lambda: bool(checkpoints(broken)))
    ranks = children(process)
    os.kill(process, signal.SIGTERM)
    assert processes.end(process) == Interrupted.exit_code
    assert "was stopped at step" in broken.folder.with_suffix(".error").read_text()
    assert len(ranks) == 3
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    stopped_at = checkpoints(broken)[-1]
    assert processes.train(resumed)["resumed_from"] == stopped_at
    assert files(resumed) == files(unbroken)


def test_lost_rank_ends_the_other_with_an_interruption(given: Given, processes: Processes) -> None:
    attempt = long(given, "lost", num_ranks=2)
    process = processes.start(slowly(attempt))
    wait_for(lambda: bool(checkpoints(attempt)))
    ranks = children(process)
    os.kill(ranks[1], signal.SIGKILL)
    assert processes.end(process) == Interrupted.exit_code
    assert "was killed by" in attempt.folder.with_suffix(".error").read_text()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):  # until whoever adopted them has seen their end
        assert time.monotonic() < deadline, f"one of {ranks} is left"
        time.sleep(0.1)


def test_a_checkpoint_that_one_rank_cannot_save_ends_all_with_its_error(given: Given, processes: Processes) -> None:
    attempt = long(given, "closed", num_ranks=2)
    closed = replace(attempt, store=Store(ClosedToRank1(Path(given.store.uri))))
    assert processes.end(processes.start(closed)) == Unavailable.exit_code
    assert attempt.folder.with_suffix(".error").read_text() == "Rank 1 of 2: The store is closed to rank 1."
    assert checkpoints(attempt) == []


def test_ranks_that_go_on_read_their_own_parts_alone_and_pass_over_what_one_of_them_finds_broken(
    given: Given, processes: Processes
) -> None:
    first, second = (
        given.attempt(
            "own-parts",
            train={"steps": 12, "validate_every_steps": 6},
            resources={"num_ranks": 2, "parallelism": "fsdp", "checkpoint_every_steps": 1},
        )
        for _ in range(2)
    )
    process = processes.start(slowly(first))
    wait_for(lambda: len(checkpoints(first)) >= 2)
    os.kill(process, signal.SIGTERM)
    assert processes.end(process) == Interrupted.exit_code
    older, newest = checkpoints(first)
    artifact = given.store.find(f"{first.prefix}/checkpoints/step-{newest:08d}")
    assert artifact is not None
    broken = artifact.path("rank-00001.pt")
    broken.write_bytes(bytes(len(broken.read_bytes())))
    assert processes.train(replace(second, store=Store(NotesReads(Path(given.store.uri)))))["resumed_from"] == older
    for rank in range(2):
        read = (Path(given.store.uri) / f"reads-{rank}").read_text().split()
        assert set(read) == {"index.pt", f"rank-{rank:05d}.pt"}, rank


def test_every_rank_finds_the_best_checkpoint_however_late_it_is_committed(given: Given, processes: Processes) -> None:
    # It is worse after the first step, and ends with what was best.
    train = {"steps": 9, "learning_rate": 5.0, "patience": 1, "keep": "best", "validate_every_steps": 1}
    attempt = given.attempt("late-best", train=train, resources={"num_ranks": 2})
    metrics = processes.train(slowly(attempt))
    assert metrics["kept_step"] < metrics["steps"] < 9


def test_a_model_in_parts_ends_with_what_was_best_in_the_middle(given: Given, processes: Processes) -> None:
    train = {"keep": "best", "patience": 3, "steps": 16, "learning_rate": 0.03, "validate_every_steps": 1}
    alone, parts = (
        given.attempt(f"middle-{len(ways)}", model="gpt2", train=train, resources=ways)
        for ways in ({}, {"num_ranks": 2, "parallelism": "fsdp"})
    )
    expected, found = training.train(alone), processes.train(parts)
    assert 0 < found["kept_step"] < found["steps"]
    assert (found["kept_step"], found["steps"]) == (expected["kept_step"], expected["steps"])
    require_close(parts, alone)
    other = weights(alone)
    for name, value in weights(parts).items():
        # Keys' biases have no gradient but for the order of its sum, of which AdamW makes some of the rate. Three steps more are 0.03 each.
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-3)


def test_bad_scores_end_two_ranks_with_65_and_name_the_problem(
    given: Given, processes: Processes, store: Store
) -> None:
    draft = store.begin(f"score/bad-{given.scratch.name}")
    rows = {example.problem_id: row(example) for example in examples(given.inputs)}
    rows["7"] = replace(rows["7"], token_ids=rows["7"].token_ids[::-1].copy())
    write_scores(draft.folder / "scores.parquet", rows)
    bad = replace(given, inputs={**given.inputs, "scores": store.commit(draft, {})})
    attempt = bad.attempt("bad", resources={"num_ranks": 2}, **RHO1)
    assert processes.end(processes.start(attempt)) == DataError.exit_code
    assert "for problem 7, which has" in attempt.folder.with_suffix(".error").read_text()


# Adapters

LORA: dict[str, Any] = {"method": {"kind": "lora", "rank": 4, "targets": ["q_proj", "up_proj"]}, "learning_rate": 0.05}


def test_an_adapter_is_all_of_the_base_that_is_learnt_and_kept(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (given.attempt("adapted", train={**LORA, "steps": 8}, **RHO1) for _ in range(2))
    with stopping_at(monkeypatch, 4), pytest.raises(Interrupted):
        training.train(first)
    names = {tuple(name.split("/", 1)) for name in checkpoint.load(given.store, first.prefix, 4).names}
    learnt = {name for kind, name in names if kind == "model"}
    assert {name for kind, name in names if kind == "exp_avg"} == learnt
    assert {name.split(".")[0] for name in learnt if "lora_" not in name} == {"heads"}
    metrics = training.train(second)
    assert metrics["validation_nats_after"] < metrics["validation_nats_before"] - 0.1
    before = load_file(given.inputs["model"].path("model/model.safetensors"))
    after = weights(second)
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"q_proj", "up_proj"}
    added = load_file(second.folder / "adapter" / "adapter_model.safetensors")
    # Two layers of q: 4 x 32 and 32 x 4, and of up: 4 x 32 and 64 x 4; two heads of two layers 32 x 32 with a bias.
    assert sum(one.numel() for one in added.values()) == 2 * (2 * 128 + 128 + 256) == 1280
    assert metrics["num_trainable"] == 1280 + 2 * 2 * (32 * 32 + 32)
    total = sum(one.numel() for one in before.values()) + metrics["num_trainable"]
    assert metrics["trainable_share"] == pytest.approx(metrics["num_trainable"] / total)


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
def test_a_stopped_adapter_goes_on_to_the_same_bytes(
    given: Given, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    train = {**LORA, "method": {**LORA["method"], "dropout": dropout}}
    unbroken, first, second = (given.attempt(name, train=train, **RHO1) for name in ("unbroken", "broken", "broken"))
    training.train(unbroken)
    with stopping_at(monkeypatch, 3), pytest.raises(Interrupted):
        training.train(first)
    assert training.train(second)["resumed_from"] == 3
    assert files(second) == files(unbroken)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= files(second).keys()


@pytest.mark.parametrize("ways", [{}, {"parallelism": "fsdp", "recompute_activations": True}], ids=["ddp", "fsdp"])
def test_an_adapter_on_two_ranks_equals_one_process(given: Given, processes: Processes, ways: dict[str, Any]) -> None:
    alone, both = (
        given.attempt(
            f"adapter-{resources.get('num_ranks', 1)}",
            model="gpt2",
            train={"batch_size": 20, "steps": 4, "method": {"kind": "lora", "rank": 4}, "head_warmup_steps": 1},
            resources={"micro_batch_rows": 1, **resources},
            **RHO1,
        )
        for resources in ({}, {"num_ranks": 2, **ways})
    )
    training.train(alone)
    processes.train(both)
    require_close(both, alone)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        expected = load_file(alone.folder / file)
        for name, value in load_file(both.folder / file).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


DROPOUT = {"method": {"kind": "lora", "rank": 4, "dropout": 0.3}, "batch_size": 20, "steps": 4, "learning_rate": 0.05}


def test_dropout_of_an_adapter_hangs_neither_on_micro_batches_nor_on_recomputing(given: Given) -> None:
    plain = {**DROPOUT, "method": {"kind": "lora", "rank": 4}}
    whole, cut, again, without = (
        given.attempt(name, train=train, resources=resources, **RHO1)
        for name, train, resources in [
            ("whole", DROPOUT, {}),
            ("cut", DROPOUT, {"micro_batch_rows": 1}),
            ("again", DROPOUT, {"recompute_activations": True}),
            ("without", plain, {}),
        ]
    )
    for attempt in (whole, cut, again, without):
        training.train(attempt)
    require_close(cut, whole)
    assert files(again) == files(whole)
    first, *later = curves(whole)
    assert first["loss"] == curves(without)[0]["loss"]  # B is zero
    assert all(line["loss"] != other["loss"] for line, other in zip(later, curves(without)[1:], strict=True))


@pytest.mark.parametrize("ways", [{}, {"parallelism": "fsdp", "recompute_activations": True}], ids=["ddp", "fsdp"])
def test_dropout_of_an_adapter_is_the_same_on_two_ranks(
    given: Given, processes: Processes, ways: dict[str, Any]
) -> None:
    alone, both = (
        given.attempt(
            f"dropout-{len(resources)}", train=DROPOUT, resources={"micro_batch_rows": 2, **resources}, **RHO1
        )
        for resources in ({}, {"num_ranks": 2, **ways})
    )
    training.train(alone)
    processes.train(both)
    require_close(both, alone)


# Heads that are whole layers

LAYERS = {"head_kind": "layer", "batch_size": 20, "steps": 4, "head_warmup_steps": 1}


@pytest.mark.parametrize(
    ("model", "ways"),
    [("gpt2", {}), ("model", {"parallelism": "fsdp", "recompute_activations": True})],
    ids=["ddp", "fsdp"],
)
def test_layers_as_heads_on_two_ranks_equal_one_process(
    given: Given, processes: Processes, model: str, ways: dict[str, Any]
) -> None:
    alone, both = (
        given.attempt(
            f"layers-{num_ranks}", model=model, train=LAYERS, resources={"micro_batch_rows": 1, **more}, **RHO1
        )
        for num_ranks, more in ((1, {}), (2, {"num_ranks": 2, **ways}))
    )
    training.train(alone)
    processes.train(both)
    require_close(both, alone)
    for file in ("model/model.safetensors", "heads.safetensors"):
        found, expected = load_file(both.folder / file), load_file(alone.folder / file)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            # Where a gradient is next to nothing, the order of its sum is some of it, and AdamW makes it a step of the rate, 1e-2.
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora", "rank": 4}], ids=["full", "lora"])
def test_a_stopped_training_of_layers_as_heads_goes_on_to_the_same_bytes(
    given: Given, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    train = {"head_kind": "layer", "method": method}
    unbroken, first, second = (given.attempt(name, train=train, **RHO1) for name in ("unbroken", "broken", "broken"))
    metrics = training.train(unbroken)
    with stopping_at(monkeypatch, 3), pytest.raises(Interrupted):
        training.train(first)
    assert training.train(second)["resumed_from"] == 3
    assert files(second) == files(unbroken)
    before, after = metrics["validation_head_nats_before"], metrics["validation_head_nats"]
    assert all(now < then for now, then in zip(after, before, strict=True))
    started = MtpModel.load(
        given.inputs["model"].folder("model"), num_heads=3, seed=0, head_kind="layer"
    ).heads.state_dict()
    learnt = load_file(unbroken.folder / "heads.safetensors")
    assert learnt.keys() == started.keys()
    assert all(not torch.equal(value, started[name]) for name, value in learnt.items())


def test_training_begins_with_the_heads_that_lie_in_the_models_folder(given: Given, store: Store) -> None:
    first = given.attempt("first", train={"head_kind": "layer"})
    done = training.train(first)
    draft = store.begin(f"pull/{given.scratch.name}-native")
    shutil.copytree(first.folder / "model", draft.folder / "model")
    shutil.copyfile(first.folder / "heads.safetensors", draft.folder / "model" / "heads.safetensors")
    given.inputs["native"] = store.commit(draft, {})
    more = training.train(given.attempt("more", model="native", train={"head_kind": "layer", "steps": 1}))
    assert more["validation_head_nats_before"] == pytest.approx(done["validation_head_nats"], rel=1e-5)


def test_layers_of_four_bits_as_heads_are_refused(given: Given) -> None:
    attempt = given.attempt("four-bits", train={"head_kind": "layer", "method": {"kind": "qlora"}})
    with pytest.raises(UserError, match=r"head_kind is layer, and 2 copies .* but train\.method\.kind is qlora"):
        training.train(attempt)


# Stopped in one process


@contextmanager
def stopping_at(monkeypatch: pytest.MonkeyPatch, boundary: int) -> Iterator[None]:
    """A wish to stop that comes before the given step of this process, from 0."""
    asked = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "stop_requested", lambda: next(asked) == boundary)
        yield


@pytest.mark.parametrize("keep", ["best", "last"])
def test_resume_is_exact_with_early_stopping_and_best(given: Given, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    train = {"keep": keep, "patience": 3, "steps": 16, "learning_rate": 0.03, "validate_every_steps": 1}
    unbroken, *parts = (
        given.attempt(name, model="gpt2", train=train, resources={"keep_last": 1}) for name in ["whole", *["cut"] * 3]
    )
    expected = training.train(unbroken)
    for part, boundary in zip(parts, (2, 4), strict=False):
        with (
            stopping_at(monkeypatch, boundary),
            pytest.raises(Interrupted, match=r"stopped at step \d+ of 16, and a checkpoint is committed"),
        ):
            training.train(part)
    found = training.train(parts[2])
    assert files(parts[2]) == files(unbroken)
    # The best step lies before the checkpoint that is gone on from, and the end after it.
    assert expected["kept_step"] == (5 if keep == "best" else 8)
    assert expected["steps"] == 8
    assert found["resumed_from"] == 6
    assert expected["resumed_from"] is None
    rest = {"resumed_from", "tokens_per_second"}
    assert {name: found[name] for name in found.keys() - rest} == {
        name: expected[name] for name in expected.keys() - rest
    }


def test_broken_checkpoint_is_passed_over(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken, *parts = (
        given.attempt(name, resources={"checkpoint_every_steps": 2}) for name in ("whole", "cut", "cut")
    )
    training.train(unbroken)
    with stopping_at(monkeypatch, 3), pytest.raises(Interrupted, match="stopped at step 3"):
        training.train(parts[0])
    newest = given.store.find(f"{parts[0].prefix}/checkpoints/step-00000003")
    assert newest
    newest.path("rank-00000.pt").write_bytes(b"short")
    assert training.train(parts[1])["resumed_from"] == 2
    assert files(parts[1]) == files(unbroken)


def test_only_the_last_checkpoints_are_kept(given: Given) -> None:
    attempt = given.attempt("kept", resources={"checkpoint_every_steps": 1, "keep_last": 2})
    training.train(attempt)
    assert checkpoints(attempt) == [4, 5]


# What is learnt


def test_loss_falls_and_metrics_say_what_happened(given: Given) -> None:
    attempt = given.attempt("plain", **RHO1)
    metrics = training.train(attempt)
    assert metrics["steps"] == metrics["kept_step"] == 6
    assert metrics["stopped_early"] is False
    assert metrics["validation_nats_before"] == pytest.approx(math.log(257), rel=0.02)
    assert metrics["validation_nats_after"] < metrics["validation_nats_before"] - 0.5
    assert len(metrics["validation_head_nats"]) == 3
    assert metrics["num_examples"] == 20
    assert metrics["train_tokens"] > 6 * 8 * 50
    assert metrics["tokens_per_second"] > 0
    assert metrics["weight_ess"] == curves(attempt)[-1]["weight_ess"] < 1
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_curves_have_a_line_a_step_and_one_a_validation(given: Given) -> None:
    attempt = given.attempt("curves")
    training.train(attempt)
    assert [line["step"] for line in curves(attempt)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in curves(attempt, "validation_nats")] == [0, 2, 4, 6]
    assert curves(attempt)[0].keys() == {
        "step", "loss", "head_nats", "learning_rate", "head_learning_rate", "gradient_norm", "weight_ess", "weight_entropy",
    }  # fmt: skip
    assert curves(attempt)[0]["weight_ess"] == curves(attempt)[0]["weight_entropy"] == pytest.approx(1)
    nats = curves(attempt)[0]["head_nats"]
    assert curves(attempt)[0]["loss"] == pytest.approx(nats[0] + 0.1875 * nats[1] + 0.1125 * nats[2], rel=1e-5)


def test_validation_is_the_mean_loss_of_transformers_itself(given: Given) -> None:
    attempt = given.attempt("validated", train={"num_heads": 1}, **RHO1)
    metrics = training.train(attempt)
    model = AutoModelForCausalLM.from_pretrained(attempt.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(attempt.folder / "model")
    held = encode(read_problems(given.inputs["data"].path("validation.parquet")), tokenizer, TEXT)[0]
    nats = [nats_of(model, one)[one.is_target] for one in held]
    assert metrics["validation_nats_after"] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-4)


@torch.no_grad()
def nats_of(model: Any, example: Example) -> torch.Tensor:
    """Loss of each token given those before it, by transformers' logits; 0 for the first one."""
    ids = torch.from_numpy(example.token_ids)
    nats = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
    return torch.cat([torch.zeros(1), nats])


def test_dynamic_weights_are_of_the_excess_of_the_student_itself(given: Given) -> None:
    attempt = given.attempt("dynamic", **RHO1)
    training.train(attempt)
    model = AutoModelForCausalLM.from_pretrained(attempt.folder / "model")
    shown = json.loads((attempt.folder / "weights.json").read_text())["examples"]
    by_id = {example.problem_id: example for example in examples(given.inputs)}
    for one in shown:
        example = by_id[one["problem_id"]]
        reference = torch.from_numpy(row(example).reference_nats)
        scores = (nats_of(model, example) - reference)[example.is_target]
        expected = document_weights(scores, SoftWeights(kind="soft"))
        assert [weight for weight in one["weights"] if weight is not None] == pytest.approx(expected.tolist(), abs=2e-3)
        assert [weight is not None for weight in one["weights"]] == example.is_target.tolist()


def test_stored_scores_weigh_as_they_are(given: Given) -> None:
    attempt = given.attempt("stored", **POSITION)
    training.train(attempt)
    shown = json.loads((attempt.folder / "weights.json").read_text())["examples"][0]
    example = next(one for one in examples(given.inputs) if one.problem_id == shown["problem_id"])
    scores = torch.from_numpy(row(example).score)[example.is_target]
    expected = document_weights(scores, SoftWeights(kind="soft"))
    assert [weight for weight in shown["weights"] if weight is not None] == pytest.approx(expected.tolist(), abs=1e-4)


def test_warm_up_teaches_new_heads_only(given: Given) -> None:
    attempt = given.attempt("warm", train={"head_warmup_steps": 6})
    training.train(attempt)
    before = load_file(given.inputs["model"].path("model/model.safetensors"))
    assert all(torch.equal(value, before[name]) for name, value in weights(attempt).items())
    heads = load_file(attempt.folder / "heads.safetensors")
    assert all(heads[f"{index}.outer.weight"].abs().sum() > 0 for index in (0, 1))


def test_trunk_is_warmed_up_when_it_begins_to_learn(given: Given) -> None:
    attempt = given.attempt("late", train={"head_warmup_steps": 2, "warmup_share": 0.5, "final_rate_share": 0.0})
    training.train(attempt)
    # Four steps are left to the trunk: two of warm-up, and half a cosine of two.
    assert [line["learning_rate"] for line in curves(attempt)] == pytest.approx([0, 0, 0.005, 0.01, 0.005, 0])


def test_patience_stops_and_best_is_what_is_kept(given: Given) -> None:
    train = {"steps": 50, "learning_rate": 0.5, "patience": 3, "keep": "best", "validate_every_steps": 1}
    attempt = given.attempt("patient", train=train)
    metrics = training.train(attempt)
    validations = {line["step"]: line["validation_nats"] for line in curves(attempt, "validation_nats")}
    best = min(validations, key=lambda step: validations[step])
    assert metrics["stopped_early"] is True
    assert metrics["steps"] == best + 3 < 50
    assert metrics["kept_step"] == best
    assert metrics["validation_nats_after"] == validations[best]
    kept = MtpModel.load(attempt.folder / "model", num_heads=3, seed=0)
    kept.load_heads(attempt.folder / "heads.safetensors")
    saved = checkpoint.load(given.store, attempt.prefix, best)
    for name, value in kept.named_parameters():
        assert torch.equal(value, saved.rows(f"model/{name}"))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_16_bits_are_close_to_float32(given: Given, kind: str) -> None:
    full, half = (given.attempt(each, train={"precision": each}, **RHO1) for each in ("float32", kind))
    training.train(full)
    training.train(half)
    assert curves(half)[0]["loss"] == pytest.approx(curves(full)[0]["loss"], rel=1e-2)
    assert curves(half)[0]["gradient_norm"] == pytest.approx(curves(full)[0]["gradient_norm"], rel=2e-2)
    assert curves(half)[0]["loss"] != curves(full)[0]["loss"]
    assert weights(half)["model.embed_tokens.weight"].dtype == torch.float32


def test_a_step_whose_gradients_overflow_float16_is_made_again_with_half_the_scale(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_FIRST_FACTOR", 2.0**40)
    train = {"precision": "float16", "steps": 5}
    unbroken, *parts = (given.attempt(name, train=train, **RHO1) for name in ("whole", "cut", "cut"))
    metrics = training.train(unbroken)
    assert metrics["num_overflows"] > 4 and metrics["loss_scale"] == 2.0 ** (40 - metrics["num_overflows"])
    assert [line["step"] for line in curves(unbroken)] == [1, 2, 3, 4, 5]
    with stopping_at(monkeypatch, 3), pytest.raises(Interrupted, match="stopped at step 3"):
        training.train(parts[0])
    assert training.train(parts[1])["num_overflows"] == metrics["num_overflows"]
    assert files(parts[1]) == files(unbroken)


def test_two_ranks_equal_one_process_in_float16(given: Given, processes: Processes) -> None:
    alone, *both = (
        given.attempt(f"half-{ways.get('parallelism')}", train={"precision": "float16", "steps": 2, "num_heads": 1}, resources=ways)
        for ways in ({}, {"num_ranks": 2}, {"num_ranks": 2, "parallelism": "fsdp"})
    )  # fmt: skip
    training.train(alone)
    for each in both:
        processes.train(each)
        for mine, other in zip(curves(each), curves(alone), strict=True):
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_student_that_is_its_reference_weighs_one_in_16_bits_too(given: Given, kind: str) -> None:
    attempt = given.attempt("equal", train={"precision": kind, "steps": 1}, **RHO1)
    for_training = training._Training(attempt)
    example = for_training.corpus.examples[0]
    exact = for_training.corpus.micro_batch([Row((example,))], {example.problem_id: np.zeros(len(example), np.float32)})
    with torch.no_grad():
        nats_BS = token_losses(
            for_training.model,
            for_training.parallel.loss.states(exact).hidden_BSD,
            targets_BS=exact.targets_HBS[0],
            chunk_rows=64,
        )
        same = replace(exact, values_BS=at_tokens(nats_BS))
        with precision.autocast(torch.device("cpu"), for_training.lesson.train.precision):
            weights_BS = for_training.parallel.loss.weights(same, for_training.parallel.loss.states(same).hidden_BSD)
    assert weights_BS[same.batch.is_target].tolist() == [1.0] * int(same.batch.is_target.sum())


# What is refused


def test_loss_that_is_not_finite_names_step_rank_and_problems(given: Given) -> None:
    attempt = given.attempt("explodes", train={"learning_rate": 1e30, "gradient_clip": 1e30, "batch_size": 2})
    with pytest.raises(
        DataError,
        match=r"Step \d of 6: the loss is not finite on rank 0, in micro-batches of the problems \d+, \d+\. .*the last checkpoint is none\.",
    ):
        training.train(attempt)
    assert not (attempt.folder / "model").exists()


def steep(micro: MicroBatch, found: StepSums) -> StepSums:
    """The same loss; the root has no finite slope at zero."""
    return found._replace(loss=found.loss + (found.loss - found.loss.detach()).sqrt())


def test_gradient_that_is_not_finite_names_step_and_problems(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = given.attempt("steep", train={"batch_size": 2, "steps": 3, "num_heads": 1})
    with (
        changed_loss(monkeypatch, steep),
        pytest.raises(
            NotFinite,
            match=r"Step 1 of 3: the loss is finite but its gradient's norm over all ranks is (inf|nan), in the step of the problems \d+, \d+\. "
            r".*last checkpoint is none\.",
        ),
    ):
        training.train(attempt)


def test_validation_that_is_not_finite_names_step_rank_and_problems(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validation_broken(micro: MicroBatch, found: StepSums) -> StepSums:
        is_hit = "22" in micro.problem_ids
        return found._replace(head_nats_H=found.head_nats_H * math.nan) if is_hit else found

    attempt = given.attempt("unsure", train={"steps": 3, "num_heads": 1}, resources={"micro_batch_rows": 1})
    with (
        changed_loss(monkeypatch, validation_broken),
        pytest.raises(
            NotFinite,
            match=r"Step 0 of 3: the validation loss is not finite on rank 0, in micro-batches of the problems [\d, ]*22[\d, ]*, and the last "
            r"checkpoint is none\.",
        ),
    ):
        training.train(attempt)


@contextmanager
def changed_loss(monkeypatch: pytest.MonkeyPatch, change: Callable[[MicroBatch, StepSums], StepSums]) -> Iterator[None]:
    plain = WeightedLoss.forward

    def forward(self: WeightedLoss, micro: MicroBatch, num_targets_H: torch.Tensor, scale: float = 1.0) -> StepSums:
        return change(micro, plain(self, micro, num_targets_H, scale))

    with monkeypatch.context() as patch:
        patch.setattr(WeightedLoss, "forward", forward)
        yield


def broken(micro: MicroBatch, found: StepSums) -> StepSums:
    return found._replace(loss=found.loss * math.inf) if micro.targets_HBS.max() >= 0 else found


def test_a_step_that_is_left_out_changes_no_weight_and_one_too_many_ends_the_training(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": 3, "num_heads": 1, "skip_bad_batches": 3}
    attempt = given.attempt("skips", train=train)
    source = load_file(given.inputs["model"].folder("model") / "model.safetensors")
    with (
        changed_loss(monkeypatch, broken),
        monkeypatch.context() as patch,
    ):
        patch.setattr(training._Training, "_validation_nats_H", lambda self: [1.0])
        assert training.train(attempt)["num_skipped"] == 3
        one_too_many = given.attempt(
            "one too many",
            train={**train, "skip_bad_batches": 2},
            resources={"checkpoint_every_steps": 1},
        )
        with pytest.raises(
            DataError,
            match=r"Step 3 of 3: the loss is not finite on rank 0.*2 of 2 such steps.*last checkpoint is that of step 2\.",
        ):
            training.train(one_too_many)
    assert [line["num_skipped"] for line in curves(attempt, "num_skipped")] == [1, 2, 3]
    for name, value in weights(attempt).items():
        assert torch.equal(value, source[name])


def test_too_little_memory_halves_the_micro_batch_and_changes_no_step(
    given: Given, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_large(micro: MicroBatch, found: StepSums) -> StepSums:
        num_rows = len(micro.targets_HBS[0])
        if num_rows > 4:
            torch.empty(2**50)  # more than any address space
        if num_rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    shrunk, fitting, failing, hopeless = (
        given.attempt(name, train={"batch_size": 20, "steps": 2}, resources={"micro_batch_rows": rows, "on_oom": on_oom})
        for name, rows, on_oom in [
            ("shrunk", 8, "shrink"), ("fitting", 2, "fail"), ("failing", 8, "fail"), ("hopeless", 1, "shrink"),
        ]
    )  # fmt: skip
    training.train(fitting)
    with changed_loss(monkeypatch, too_large):
        with caplog.at_level(logging.WARNING):
            assert training.train(shrunk)["micro_batch_rows"] == 2
        with pytest.raises(
            OutOfMemory,
            match=r"^\w+: can't allocate memory: .*: cpu cannot hold a micro-batch of 8 rows.*Set train\.micro_batch_rows",
        ):
            training.train(failing)
    assert "Goes on with micro-batches of 2 rows instead of 4" in caplog.text
    assert files(shrunk) == files(fitting)

    def always(micro: MicroBatch, found: StepSums) -> StepSums:
        raise RuntimeError(
            "MPS backend out of memory (MPS allocated: 18.1 GB, max allowed: 18.13 GB). Tried to allocate 2 GB."
        )

    with changed_loss(monkeypatch, always), pytest.raises(OutOfMemory, match="micro-batch of 1 rows"):
        training.train(hopeless)


def test_warm_up_of_heads_that_are_not_there_is_refused(given: Given) -> None:
    with pytest.raises(UserError, match=r"train\.head_warmup_steps is 2, .* but train\.num_heads is 1"):
        training.train(given.attempt("headless", train={"num_heads": 1, "head_warmup_steps": 2}))


def test_longer_documents_than_the_model_has_positions_are_refused(given: Given) -> None:
    with pytest.raises(UserError, match=r"text\.max_length is 512 but LlamaForCausalLM has 256 positions"):
        training.train(
            replace(given.attempt("long"), config={**given.attempt("long").config, "text": {"max_length": 512}})
        )


# What is written, and who is told


def test_result_is_a_plain_model_with_its_tokenizer_and_heads_beside_it(given: Given) -> None:
    many, one = given.attempt("many"), given.attempt("one", train={"num_heads": 1})
    training.train(many)
    training.train(one)
    assert {"heads.safetensors", "curves.jsonl", "weights.json"} <= files(many).keys()
    assert "heads.safetensors" not in files(one)
    source = given.inputs["model"].folder("model")
    assert files(many)["model/tokenizer.json"] == (source / "tokenizer.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(many.folder / "model").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(many.folder / "model").eos_token == "<end>"


def test_weights_file_shows_tokens_and_a_histogram(given: Given) -> None:
    attempt = given.attempt("shown")
    training.train(attempt)
    report = json.loads((attempt.folder / "weights.json").read_text())
    first = report["examples"][0]
    assert len(report["examples"]) == 20
    assert "return x" in "".join(first["tokens"])
    assert len(first["tokens"]) == len(first["weights"])
    assert first["weights"][0] is None
    assert first["weights"][-1] == 1.0
    assert len(report["histogram"]["edges"]) == len(report["histogram"]["counts"]) + 1
    assert sum(report["histogram"]["counts"]) == sum(int(one.is_target.sum()) for one in examples(given.inputs))


def test_calibration_is_of_the_kept_model_on_validation_problems(given: Given) -> None:
    attempt = given.attempt("calibrated")
    training.train(attempt)
    heads = json.loads((attempt.folder / "calibration.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(attempt.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(attempt.folder / "model")
    sure, right = [], []
    for example in encode(read_problems(given.inputs["data"].path("validation.parquet")), tokenizer, TEXT)[0]:
        ids, targets = torch.from_numpy(example.token_ids), example.is_target.nonzero()[0]
        with torch.no_grad():
            confidences, guesses = model(input_ids=ids[None]).logits[0, targets - 1].softmax(-1).max(-1)
        sure += confidences.tolist()
        right += (guesses == ids[targets]).tolist()
    assert len(heads) == 3 and all(len(bins) == 10 for bins in heads)
    for place, one in enumerate(heads[0]):
        inside = [number for number, confidence in enumerate(sure) if int(10 * confidence) == place]
        assert one["count"] == len(inside)
        assert one["confidence"] == pytest.approx(
            sum(sure[number] for number in inside) / max(len(inside), 1), abs=1e-5
        )
        assert one["accuracy"] == pytest.approx(sum(right[number] for number in inside) / max(len(inside), 1), abs=1e-5)
    # The prompt before is long enough for every head to have each target.
    assert [sum(one["count"] for one in bins) for bins in heads] == [len(sure), len(sure), len(sure)]


def test_curves_go_to_the_experiment_of_the_run(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, Mapping[str, Any]]] = []
    asked: dict[str, Any] = {}

    class Recorder:
        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            told.append((step, metrics))

    @contextmanager
    def recorder(environment: Environment, **facts: Any) -> Iterator[Recorder]:
        asked.update(facts)
        yield Recorder()

    monkeypatch.setattr(tracking, "curve_logger", recorder)
    attempt = replace(given.attempt("told"), labels={"experiment": "wmtp/uniform/demo"})
    training.train(attempt)
    assert asked == {"stage_key": "told", "experiment": "wmtp/uniform/demo", "params": attempt.config}
    assert [json.dumps(line) for _, line in told] == (attempt.folder / "curves.jsonl").read_text().splitlines()


def test_training_goes_on_when_no_tracking_server_answers(given: Given) -> None:
    attempt = replace(given.attempt("alone"), labels={"experiment": "wmtp/uniform/demo"})
    assert training.train(attempt)["steps"] == 6


def test_terminal_gets_a_bar_and_a_log_a_line_now_and_then(
    given: Given, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level(logging.INFO):
        training.train(given.attempt("lines"))
    assert "train: 3 of 6, loss " in caplog.text
    assert "train: 6 of 6" not in capsys.readouterr().err

    caplog.clear()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO):
        training.train(given.attempt("bar"))
    shown = capsys.readouterr().err
    assert "6/6" in shown and "loss " in shown
    assert "train: 3 of 6" not in caplog.text


# Pieces


def test_rate_rises_then_falls_by_a_cosine() -> None:
    shares = [optimization.rate_share(step, num_steps=8, warmup_share=0.5, final_share=0) for step in range(8)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0])
    assert optimization.rate_share(7, num_steps=8, warmup_share=0.5, final_share=0.1) == pytest.approx(0.1)
    assert optimization.rate_share(0, num_steps=1, warmup_share=0.0, final_share=0.1) == pytest.approx(0.1)


def test_decay_is_on_matrices_only_and_heads_have_their_rate(given: Given) -> None:
    model = MtpModel.load(given.inputs["gpt2"].folder("model"), num_heads=2, seed=0)
    train = Train(steps=1, learning_rate=1e-3, new_head_learning_rate=1e-2, weight_decay=0.1)
    groups = optimization.adamw(model, train).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        assert {one.ndim >= 2 for one in group["params"]} == {group["weight_decay"] == 0.1}
        is_head = any(one is group["params"][0] for one in model.heads.parameters())
        assert group["peak_rate"] == (1e-2 if is_head else 1e-3)


def test_spread_of_weights_by_hand() -> None:
    # Weights 2, 2, 0, 0: half of the tokens count, and the entropy is log 2 of log 4.
    total = torch.tensor([1.0, 6.0, 3.0, 4.0, 8.0, 4 * math.log(2)], dtype=torch.float64)
    metrics = training._step_metrics(total, torch.tensor([4, 0]))
    assert metrics["weight_ess"] == pytest.approx(0.5)
    assert metrics["weight_entropy"] == pytest.approx(0.5)
    assert metrics["head_nats"] == [1.5, None]


# What only a GPU can show: its owner runs `pytest -m gpu`.


def num_gpus_at_least(count: int) -> Callable[[Any], Any]:
    is_missing = torch.cuda.device_count() < count
    return lambda test: pytest.mark.gpu(pytest.mark.skipif(is_missing, reason=f"needs {count} CUDA devices")(test))


@num_gpus_at_least(1)
@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05), ("float16", 0.02)])
def test_a_gpu_learns_what_a_cpu_learns(
    given: Given, monkeypatch: pytest.MonkeyPatch, kind: str, tolerance: float
) -> None:
    there, here = (
        given.attempt(f"gpu-{one}", train={**DROPOUT, "precision": one}, **RHO1) for one in (kind, "float32")
    )
    training.train(there)
    monkeypatch.setattr(distributed, "accelerator", lambda: "cpu")
    training.train(here)
    for mine, other in zip(curves(there), curves(here), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=tolerance)


@num_gpus_at_least(2)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_gpus_learn_what_one_learns(given: Given, processes: Processes, way: str) -> None:
    one, two = (
        given.attempt(f"gpus-{n}", resources={"num_ranks": n, "parallelism": way, "micro_batch_rows": 1}, **RHO1)
        for n in (1, 2)
    )
    for attempt in (one, two):
        processes.train(attempt)
    for mine, other in zip(curves(two), curves(one), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
