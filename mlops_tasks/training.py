"""The stage `train`: a few named steps around one loop.

Owns what a step does, validation, early stopping, when a checkpoint is due, and what is written. Optimiser and schedule are
`optimization`'s, what is learnt in which order `corpus`'s, what a micro-batch adds to the loss `objective`'s, processes `distributed`'s.

An exact resume needs the model, the optimiser and `Progress`: the schedule and the order of the problems are functions of seed and
step, and so are dropout's masks.

Shape letters: H head, B packed rows, S position, D width.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlops_tasks import adapters, checkpoint, distributed, precision
from mlops_tasks.checkpoint import Saver
from mlops_tasks.config.learning import LowRank, QLora, Train
from mlops_tasks.corpus import Lesson, MicroBatch, Values, load_corpus
from mlops_tasks.data.tokens import Example
from mlops_tasks.errors import Interrupted, NotFinite, OutOfMemory, Pruned, Unfit
from mlops_tasks.logs import ProgressBar
from mlops_tasks.model import MtpModel
from mlops_tasks.objective import StepSums, WeightedLoss
from mlops_tasks.optimization import adamw, rate_share
from mlops_tasks.parallel import Parallel
from mlops_tasks.portrait import Portrait, copy_tokenizer
from mlops_tasks.precision import LossScale
from mlops_tasks.pretrained import load_model
from mlops_tasks.scoring.weights import spread
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

MAX_CURVE_POINTS = 500
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Overseer(Protocol):
    """Who may end a training that does worse than others; picklable, for rank 0 may be a process of its own."""

    def goes_on(self, step: int, num_steps: int, validation_nats: float) -> bool:
        """Take a validation loss; False ends the training."""


def train(attempt: Attempt, overseer: Overseer | None = None) -> dict[str, Any]:
    """Train a model as the recipe says, on as many ranks as the environment says, from the newest checkpoint if there is one.

    Args:
        overseer: told of each validation loss; None: nobody is.

    Raises:
        Unfit: settings that do not fit the model or the data.
        DataError: scores of other tokens.
        NotFinite: a loss or a gradient that is no number.
        Interrupted: stopped by a signal or a lost rank, after a checkpoint.
        Pruned: the overseer ended it.
    """
    attempt.inputs["model"].folder("model")  # its hash is checked here, once for all ranks
    try:
        return distributed.launch(
            _train_rank,
            num_ranks=attempt.environment.train.num_ranks,
            args=(attempt, overseer),
            is_resumable=lambda: bool(checkpoint.steps(attempt.store, attempt.prefix)),
        )
    except OutOfMemory as error:
        smaller = _shrunk(attempt, error)
    return train(smaller, overseer)


def _shrunk(attempt: Attempt, error: OutOfMemory) -> Attempt:
    """The same training with micro-batches of half as many rows: more of them make the same step."""
    resources = attempt.environment.train
    if resources.on_oom == "fail" or resources.micro_batch_rows == 1:
        raise error
    num_rows = resources.micro_batch_rows // 2
    log.warning("%s Goes on with micro-batches of %d rows instead of %d.", error, num_rows, resources.micro_batch_rows)
    smaller = resources.model_copy(update={"micro_batch_rows": num_rows})
    return replace(attempt, environment=attempt.environment.model_copy(update={"train": smaller}))


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    """Optimiser steps done."""
    num_tokens: int = 0
    """Tokens that went through the model, prompts among them."""
    batches: str = ""
    """SHA-256 over the problems of each step so far, in their order: equal if two trainings learnt from the same batches."""
    best_step: int = 0
    best_nats: float = math.inf
    num_stale: int = 0
    """Validations since the best one."""
    num_skipped: int = 0
    """Steps that were left out because a number was not finite."""
    curves: list[str] = field(default_factory=list)
    """Lines of curves.jsonl."""


class Watcher(Protocol):
    """Who is told of each step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the numbers of a step."""


def _train_rank(attempt: Attempt, overseer: Overseer | None) -> dict[str, Any]:
    resources = attempt.environment.train
    try:
        return _Training(attempt, overseer).run()
    except (RuntimeError, MemoryError) as error:
        told = _told_of_memory(error)
        if told is None:
            raise
        reason = told
    # Outside of `except`, where the frames that hold the tensors are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory(
        f"{reason}: {distributed.device()} cannot hold a micro-batch of {resources.micro_batch_rows} rows beside the model. Set "
        "train.micro_batch_rows, or train.loss_chunk_rows, in the environment file to less, train.recompute_activations to true, or "
        "train.parallelism to fsdp."
    )


def _told_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """What an allocator said of the memory that it lacks; None: it is another error. Those of CPUs and of Apple's GPUs have no class of their own."""
    sentences = str(error).split(". ")
    lacking = [one for one in sentences if any(words in one for words in _OUT_OF_MEMORY)]
    is_certain = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return next(iter(lacking), sentences[0] if is_certain else None)


class _Training:
    """One rank's training: what it works with, and how far it is."""

    def __init__(self, attempt: Attempt, overseer: Overseer | None = None) -> None:
        self.attempt = attempt
        self.overseer = overseer
        self.lesson = Lesson.model_validate(attempt.config)
        self.resources = attempt.environment.train
        # Of several pods one may have shrunk them; all must make as many.
        self.num_rows = min(distributed.gather(self.resources.micro_batch_rows))
        self.device = distributed.device()
        self.is_first = distributed.rank() == 0
        precision.require(self.device, self.lesson.train.precision)
        _require_learnable_heads(self.lesson.train)
        inputs = attempt.inputs
        self.corpus = load_corpus(self.lesson, data=inputs["data"], model=inputs["model"], scores=inputs.get("scores"))
        self.model, self.adapter = self._load_model(inputs["model"].folder("model"))
        self.model.check_length(self.lesson.text.max_length)
        # It stays in evaluation mode, for the masks of its own dropout would depend on the number of ranks and the size of a micro-batch.
        if self.resources.recompute_activations:
            self.model.recompute_activations()
        self.parallel = self._in_parallel()
        if self.model.is_in_parts:
            self.parallel.probe(inputs["model"].uri)
        self.optimizer = adamw(self.model, self.lesson.train)
        # Everything weighs 1 in validation, whatever the training does.
        self.validation = self._share(self.corpus.validation, None) if self.corpus.validation else []
        self.progress = Progress()
        self.scale = LossScale.of(self.lesson.train.precision)
        self.watcher: Watcher | None = None
        self.saver = Saver(attempt.store, attempt.prefix, token=attempt.token, keep_last=self.resources.keep_last)
        self.saved_step: int | None = None

    def run(self) -> dict[str, Any]:
        """All steps that are left, and the result."""
        resumed_from = self._resume()
        started, tokens_before = time.monotonic(), self.progress.num_tokens
        with self.saver, self._watched() as bar:
            if resumed_from is None:
                self._validate()
            else:
                self._retell()
            while not self._is_done:
                micro_batches, num_targets_H = self._next_batch()
                line = self._learn(micro_batches, num_targets_H)
                bar.advance(f"loss {line['loss']:.4f}" if "loss" in line else "left out")
                self._after_step(line)
            self._settle()
        tokens_per_second = (self.progress.num_tokens - tokens_before) / (time.monotonic() - started)
        return self._finish() | {"resumed_from": resumed_from, "tokens_per_second": round(tokens_per_second, 1)}

    @property
    def _is_done(self) -> bool:
        return self.progress.step >= self.corpus.num_steps or self._is_stopped_early

    @property
    def _is_stopped_early(self) -> bool:
        patience = self.lesson.train.patience
        return patience is not None and self.progress.num_stale >= patience

    def _load_model(self, folder: Path) -> tuple[MtpModel, adapters.Adapter | None]:
        train, method, seed = self.lesson.train, self.lesson.train.method, self.lesson.seed
        read: Callable[[Path], PreTrainedModel] = load_model
        is_spread = self.resources.parallelism == "fsdp" and distributed.num_ranks() > 1
        if isinstance(method, QLora):
            read = adapters.quantized(self.device, is_spread=is_spread, precision=train.precision)
        if is_spread and isinstance(method, LowRank) and self.is_first:
            log.warning(
                "%s: each rank reads the whole model when it starts, for an adapter is put beside weights", method.kind
            )
        if is_spread and not isinstance(method, LowRank):
            model = MtpModel.load_in_parts(folder, num_heads=train.num_heads, seed=seed, head_kind=train.head_kind)
        else:
            model = MtpModel.load(folder, num_heads=train.num_heads, seed=seed, head_kind=train.head_kind, read=read)
        adapter = adapters.Adapter(model, method, seed=seed) if isinstance(method, LowRank) else None
        if self.is_first:
            share = 100 * model.num_trainable() / model.num_parameters()
            log.info("%s: %d parameters are trainable, %.3g %% of all", method.kind, model.num_trainable(), share)
        return model, adapter

    def _in_parallel(self) -> Parallel:
        loss = WeightedLoss(self.model, self.lesson, chunk_rows=self.resources.loss_chunk_rows)
        with self._autocast():
            return Parallel(loss, self.resources.parallelism, rehearsal=self.corpus.rehearsal().to(self.device))

    def _share(
        self, examples: Sequence[Example], values: Values | None, *, step: int | None = None
    ) -> list[MicroBatch]:
        """This rank's micro-batches of examples that all ranks share, to be learnt in a step or looked at."""
        return self.corpus.micro_batches(
            examples,
            values,
            rank=distributed.rank(),
            num_ranks=distributed.num_ranks(),
            num_rows=self.num_rows,
            step=step,
        )

    def _next_batch(self) -> tuple[list[MicroBatch], Tensor]:
        """This rank's micro-batches of the step, and N_k over all ranks; here is where all ranks stop together."""
        self.saver.check()
        step = self.progress.step
        micro_batches = self._share(self.corpus.of_step(step), self.corpus.values, step=step)
        own_H = torch.stack([micro.num_targets_H() for micro in micro_batches]).sum(0)
        wishes = torch.tensor([int(distributed.stop_requested())])
        agreed = distributed.sum_over_ranks(torch.cat([own_H, wishes]))
        if agreed[-1] > 0:
            self._stop()
        return micro_batches, agreed[:-1]

    def _learn(self, micro_batches: Sequence[MicroBatch], num_targets_H: Tensor) -> dict[str, Any]:
        """One optimiser step; returns its line of curves.jsonl."""
        train, step = self.lesson.train, self.progress.step
        self.optimizer.zero_grad()
        on_device_H = num_targets_H.to(self.device)
        sums = [
            self._backward(micro, on_device_H, is_last=number == len(micro_batches))
            for number, micro in enumerate(micro_batches, start=1)
        ]
        if step < train.head_warmup_steps:
            for parameter in self.model.base.parameters():
                parameter.grad = None
        norm = self.parallel.clip(train.gradient_clip, scale=self.scale.factor)
        total = _total(sums)
        is_loss_finite = bool(torch.isfinite(total).all())
        if is_loss_finite and not math.isfinite(norm) and self.scale.shrink():
            return self._learn(micro_batches, num_targets_H)
        if not (is_loss_finite and math.isfinite(norm)):
            return self._skip(self._fault(micro_batches, sums, norm))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_rate"] * self._rate_share(step, first_step=group["first_step"])
        self.optimizer.step()
        self.scale.count_step()
        self._count_step()
        return {
            "step": self.progress.step,
            **_step_metrics(total, num_targets_H),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **({"head_learning_rate": self.optimizer.param_groups[-1]["lr"]} if train.num_heads > 1 else {}),
            "gradient_norm": norm,
            **self.scale.metrics(),
        }

    def _rate_share(self, step: int, *, first_step: int) -> float:
        """The share of the peak rate for parameters that learn from `first_step` on: they are warmed up when they begin."""
        train = self.lesson.train
        if step < first_step:
            return 0.0
        return rate_share(
            step - first_step,
            num_steps=self.corpus.num_steps - first_step,
            warmup_share=train.warmup_share,
            final_share=train.final_rate_share,
        )

    def _backward(self, micro: MicroBatch, num_targets_H: Tensor, *, is_last: bool) -> StepSums:
        """Add the gradients of one micro-batch; the ranks' are summed with the last one."""
        with self.parallel.summing(is_last=is_last):
            with self._autocast():
                found = self.parallel(micro.to(self.device), num_targets_H, self.scale.factor)
            self.parallel.backward(found.loss)
        loss, *others = (part.detach() for part in found)
        return StepSums(loss / self.scale.factor, *others)

    def _count_step(self) -> None:
        progress, examples = self.progress, self.corpus.of_step(self.progress.step)
        progress.num_tokens += sum(map(len, examples))
        ids = " ".join(example.problem_id for example in examples)
        progress.batches = hashlib.sha256(f"{progress.batches} {ids}".encode()).hexdigest()
        progress.step += 1

    def _skip(self, fault: str) -> dict[str, Any]:
        """Leave a step out, or give up; returns its line of curves.jsonl."""
        train, progress = self.lesson.train, self.progress
        where = f"Step {progress.step + 1} of {self.corpus.num_steps}: the {fault}."
        if progress.num_skipped >= train.skip_bad_batches:
            raise NotFinite(
                f"{where} {progress.num_skipped} of {train.skip_bad_batches} such steps were left out before, and {self._last_checkpoint()}. "
                "Lower train.learning_rate, look at these problems and their scores, or raise train.skip_bad_batches."
            )
        if self.is_first:
            log.warning("%s It is left out.", where)
        progress.num_skipped += 1
        self.scale.leave_out()
        self._count_step()
        return {"step": progress.step, "num_skipped": progress.num_skipped}

    def _fault(self, micro_batches: Sequence[MicroBatch], sums: Sequence[StepSums], norm: float) -> str:
        if where := _not_finite(micro_batches, [one.loss for one in sums]):
            return f"loss is not finite {where}"
        ids = ", ".join(example.problem_id for example in self.corpus.of_step(self.progress.step))
        return f"loss is finite but its gradient's norm over all ranks is {norm}, in the step of the problems {ids}"

    def _last_checkpoint(self) -> str:
        self.saver.wait()
        kept = checkpoint.steps(self.attempt.store, self.attempt.prefix)
        return f"the last checkpoint is {f'that of step {kept[-1]}' if kept else 'none'}"

    def _after_step(self, line: Mapping[str, Any]) -> None:
        step, num_steps = self.progress.step, self.corpus.num_steps
        if step % math.ceil(num_steps / MAX_CURVE_POINTS) == 0 or step in (1, num_steps) or "num_skipped" in line:
            self._note(line)
        if step % self.lesson.train.validate_every_steps == 0 or step == num_steps:
            self._validate()
        if step % self.resources.checkpoint_every_steps == 0 and not self._is_done:
            self._save_checkpoint()

    def _validate(self) -> None:
        """Unweighted nats a target token of each head on the validation problems; sets what is best so far."""
        if not self.corpus.validation:
            return
        step, num_steps = self.progress.step, self.corpus.num_steps
        nats_H = self._validation_nats_H()
        nats = nats_H[0]
        assert nats is not None, "each example has a target of head 1"
        self._note({"step": step, "validation_nats": nats, "validation_head_nats": nats_H})
        if self.is_first:
            log.info("step %d of %d: validation %.4f nats a token", step, num_steps, nats)
        if nats >= self.progress.best_nats:
            self.progress.num_stale += 1
        else:
            self.progress.best_nats, self.progress.best_step, self.progress.num_stale = nats, step, 0
            if self.lesson.train.keep == "best":
                self._save_checkpoint()
        self._oversee(step, nats)

    def _oversee(self, step: int, nats: float) -> None:
        """Tell the overseer, and end on all ranks if it says so; a training that is done anyway is kept."""
        if self.overseer is None or step == 0:
            return
        goes_on = distributed.broadcast(
            self.overseer.goes_on(step, self.corpus.num_steps, nats) if self.is_first else None
        )
        if not goes_on and not self._is_done:
            raise Pruned(f"Ended at step {step} of {self.corpus.num_steps} with a validation loss of {nats:.4f} nats.")

    def _retell(self) -> None:
        """An overseer of a resumed training has not seen how it came so far."""
        for line in map(json.loads, self.progress.curves):
            if "validation_nats" in line:
                self._oversee(line["step"], line["validation_nats"])

    @torch.no_grad()
    def _validation_nats_H(self) -> list[float | None]:
        sums_2H = torch.zeros(2, self.lesson.train.num_heads, dtype=torch.float64)
        by_micro = []
        for micro in self.validation:
            with self._autocast():
                found = self.parallel.loss(
                    micro.to(self.device), torch.ones(self.lesson.train.num_heads, device=self.device)
                )
            by_micro.append(found.head_nats_H.cpu())
            sums_2H += torch.stack([by_micro[-1], micro.num_targets_H()])
        total_2H = distributed.sum_over_ranks(sums_2H)
        if not total_2H.isfinite().all():
            raise NotFinite(
                f"Step {self.progress.step} of {self.corpus.num_steps}: the validation loss is not finite {_not_finite(self.validation, by_micro)}, "
                f"and {self._last_checkpoint()}. Lower train.learning_rate, or look at these problems."
            )
        return _means(*total_2H)

    def _note(self, line: Mapping[str, Any]) -> None:
        self.progress.curves.append(json.dumps(line, allow_nan=False))
        if self.watcher is not None:
            self.watcher.log(int(line["step"]), line)

    @contextmanager
    def _watched(self) -> Iterator[ProgressBar]:
        """Curves in MLflow if the run has an experiment, and a bar on a terminal; rank 0 only."""
        with ExitStack() as stack:
            experiment = self.attempt.labels.get("experiment")
            if self.is_first and experiment is not None:
                from mlops_tasks import tracking

                self.watcher = stack.enter_context(
                    tracking.curve_logger(
                        self.attempt.environment,
                        stage_key=self.attempt.key,
                        experiment=experiment,
                        params=self.attempt.config,
                    )
                )
            bar = ProgressBar(
                "train", self.corpus.num_steps, unit="step", done=self.progress.step, is_told=self.is_first
            )
            yield stack.enter_context(bar)

    def _autocast(self) -> torch.autocast:
        return precision.autocast(self.device, self.lesson.train.precision)

    def _save_checkpoint(self) -> None:
        """Begin to save the state as it is now, unless that is done."""
        progress, keeps_best = self.progress, self.lesson.train.keep == "best"
        if progress.step == self.saved_step:
            return
        self.saver.wait()  # two copies of the state would be too many
        rest = {"progress": asdict(progress), "loss_scale": asdict(self.scale)}
        part = checkpoint.Part(self.parallel.state(self.optimizer), rest)
        self.saver.begin(part, step=progress.step, best_step=progress.best_step if keeps_best else None)
        self.saved_step = progress.step

    def _resume(self) -> int | None:
        """Go on from the newest checkpoint that is whole; returns its step."""
        step = checkpoint.newest(self.attempt.store, self.attempt.prefix)
        if step is None:
            return None
        self._load(step)
        if self.is_first:
            log.info("goes on from the checkpoint of step %d of %d", step, self.corpus.num_steps)
        return step

    def _load(self, step: int) -> None:
        saved = checkpoint.load(self.attempt.store, self.attempt.prefix, step)
        self.parallel.load(saved, self.optimizer)
        self.progress, self.scale = Progress(**saved.rest["progress"]), LossScale(**saved.rest["loss_scale"])
        self.saved_step = step

    def _settle(self) -> None:
        """Until what was saved is committed, which rank 0 does, and for all ranks: one that ends first ends the others."""
        self.saver.wait()
        distributed.barrier()

    def _stop(self) -> NoReturn:
        self._save_checkpoint()
        self._settle()
        raise Interrupted(
            f"The training was stopped at step {self.progress.step} of {self.corpus.num_steps}, and a checkpoint is committed. "
            "Start the task again and it resumes."
        )

    def _finish(self) -> dict[str, Any]:
        """Write the result (rank 0) and say what came of it."""
        progress, scale = self.progress, self.scale
        kept_step = progress.best_step if self.lesson.train.keep == "best" else progress.step
        if kept_step != progress.step:
            self._load(kept_step)
        self._write(progress.curves)
        lines = [json.loads(line) for line in progress.curves]
        validations = {line["step"]: line for line in lines if "validation_nats" in line}
        last: dict[str, Any] = next((line for line in reversed(lines) if "loss" in line), {})
        before, after = validations.get(0, {}), validations.get(kept_step, {})
        return {
            "steps": progress.step,
            "stopped_early": progress.step < self.corpus.num_steps,
            "kept_step": kept_step,
            "validation_nats_before": before.get("validation_nats"),
            "validation_nats_after": after.get("validation_nats"),
            "validation_head_nats_before": before.get("validation_head_nats"),
            "validation_head_nats": after.get("validation_head_nats"),
            "train_tokens": progress.num_tokens,
            "batches_sha256": progress.batches,
            "weight_ess": last.get("weight_ess"),
            "weight_entropy": last.get("weight_entropy"),
            "num_examples": len(self.corpus.examples),
            "num_too_long": self.corpus.num_too_long,
            "num_skipped": progress.num_skipped,
            **scale.metrics(),
            "micro_batch_rows": self.num_rows,
            "num_trainable": self.model.num_trainable(),
            "trainable_share": self.model.num_trainable() / self.model.num_parameters(),
        }

    def _write(self, curves: Sequence[str]) -> None:
        # What every rank has to do: each may hold a part of the model.
        folder, portrait = self.attempt.folder, Portrait(self.parallel.loss, self.corpus)
        report, sureness = portrait.weights(), portrait.calibration()
        state = self.parallel.weights()
        if self.adapter is not None:
            self.adapter.save(folder / adapters.FOLDER, state)
            state = self.adapter.merged(state)
        self.model.save(folder, state)
        if not self.is_first:
            return
        copy_tokenizer(self.attempt.inputs["model"].folder("model"), folder / "model")
        (folder / "curves.jsonl").write_text("".join(f"{line}\n" for line in curves), encoding="utf-8")
        text = json.dumps(report, ensure_ascii=False, allow_nan=False)
        (folder / "weights.json").write_text(text, encoding="utf-8")
        heads = json.dumps([[asdict(one) for one in bins] for bins in sureness], allow_nan=False)
        (folder / "calibration.json").write_text(heads, encoding="utf-8")


def _require_learnable_heads(train: Train) -> None:
    if train.head_kind == "layer" and train.num_heads > 1 and isinstance(train.method, QLora):
        raise Unfit(
            f"train.head_kind is layer, and {train.num_heads - 1} copies of the base's last layer would learn, but train.method.kind is qlora, whose "
            "layers are in 4 bits and cannot. Set train.head_kind to residual, or train.method.kind to lora."
        )
    if train.num_heads == 1 and train.head_warmup_steps > 0:
        raise Unfit(
            f"train.head_warmup_steps is {train.head_warmup_steps}, in which only heads 2 and up learn, but train.num_heads is 1. "
            "Set train.head_warmup_steps to 0, or train.num_heads to 2 or more."
        )


def _not_finite(micro_batches: Sequence[MicroBatch], nats: Sequence[Tensor]) -> str:
    """On which ranks, and in which micro-batches, a loss is not finite; empty: nowhere. All ranks ask at one time."""
    bad = [
        id
        for micro, one in zip(micro_batches, nats, strict=True)
        if not one.isfinite().all()
        for id in micro.problem_ids
    ]
    return "; ".join(
        f"on rank {rank}, in micro-batches of the problems {', '.join(ids)}"
        for rank, ids in enumerate(distributed.gather(bad))
        if ids
    )


def _total(sums: Sequence[StepSums]) -> Tensor:
    """Loss, nats of each head and sums of weights of a step, over micro-batches and ranks: float64 on the CPU."""
    own = torch.stack([torch.cat([one.loss[None], one.head_nats_H, one.weight_sums]) for one in sums])
    return distributed.sum_over_ranks(own.cpu().double().sum(0))


def _step_metrics(total: Tensor, num_targets_H: Tensor) -> dict[str, Any]:
    ess, entropy = spread(total[-3:], int(num_targets_H[0]))
    return {
        "loss": float(total[0]),
        "head_nats": _means(total[1:-3], num_targets_H),
        "weight_ess": ess,
        "weight_entropy": entropy,
    }


def _means(sums_H: Tensor, counts_H: Tensor) -> list[float | None]:
    """Mean per head; None for a head that is further ahead than any document is long."""
    pairs = zip(sums_H.tolist(), counts_H.tolist(), strict=True)
    return [total / count if count else None for total, count in pairs]
