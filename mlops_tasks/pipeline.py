"""The daily pipeline as a table: which tasks there are, what each reads, and which part of the recipe it is keyed by.

What a task does is in its stage's module; how it is run once is in `stage`; its place in time is the DAG's. This page
also resolves a recipe into the spec that all tasks of a run read (`plan`) and looks ahead without running (`preview`, `why`).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mlops_tasks import stage as runtime
from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.learning import (
    Critic,
    CrossFittedReference,
    GivenReference,
    ModelReward,
    Rho1,
    TestsReward,
    Train,
    TrainedReference,
    Uniform,
)
from mlops_tasks.config.loading import load_recipe
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.sources import HubModel, ModelSource
from mlops_tasks.config.space import Choice
from mlops_tasks.data.pins import digest_of_model, digest_of_source
from mlops_tasks.data.prompts import mismatch
from mlops_tasks.data.protocols import module_of, protocol_named
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.keys import differences
from mlops_tasks.stage import CHAMPION, Input, Pointer, Run, Spec, Stage, Task, Tuned
from mlops_tasks.store import MANIFEST, Artifact, Store
from mlops_tasks.tracking import experiment_name

_MODEL_PACKAGES = ("numpy", "pyarrow", "safetensors", "tokenizers", "torch", "transformers")

PULL = Stage("pull", "mlops_tasks.data.pull:pull", _MODEL_PACKAGES)
TRAIN = Stage("train", "mlops_tasks.training:train", _MODEL_PACKAGES)
REWARD = Stage("reward", "mlops_tasks.scoring.rewards:reward", _MODEL_PACKAGES)
FIT_CRITIC = Stage("fit_critic", "mlops_tasks.scoring.fitting:fit_critic", _MODEL_PACKAGES)
SCORE_SHARD = Stage("score_shard", "mlops_tasks.scoring.shards:score_shard", _MODEL_PACKAGES)
SCORE = Stage("score", "mlops_tasks.scoring.merging:score", ("pyarrow",))
GENERATE = Stage("generate", "mlops_tasks.evaluation.generation:generate", _MODEL_PACKAGES)
JUDGE = Stage("judge", "mlops_tasks.evaluation.judging:judge", ("numpy", "pyarrow"))
SELECT = Stage("select", "mlops_tasks.tuning.selection:select", (*_MODEL_PACKAGES, "optuna"))

_TOKENIZER_FILES = tuple(
    f"model/{name}"
    for name in ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
)
_ASKED = ("protocol", "num_samples", "temperature", "top_p")
_TRAINING_DATA = ("train.parquet", "validation.parquet", "prompt.parquet")

_PACKAGES_OF_METHODS = {"lora": ("peft",), "qlora": ("bitsandbytes", "peft")}

_NUM_EARLIER_RUNS = 20

PREPARATION = (
    "pull_data",
    "pull_model",
    "pull_reference",
    "reference",
    "reward",
    "fit_critic",
    "score_shard",
    "score",
)
"""Tasks before the training, in order."""

# generate and judge are mapped over these, in this order.
EVALUATIONS: tuple[tuple[Literal["candidate", "baseline"], Literal["gate", "report"]], ...] = (
    ("candidate", "gate"),
    ("candidate", "report"),
    ("baseline", "gate"),
    ("baseline", "report"),
)


def _pull_data(spec: Spec, index: int) -> dict[str, Any]:
    data = spec.recipe.data
    return {
        "data": data.source.model_dump(mode="json"),
        "on_contamination": data.on_contamination,
        "pin": spec.pins["pull_data"],
    }


def _pull_model(spec: Spec, index: int) -> dict[str, Any]:
    return {"model": spec.recipe.model.source.model_dump(mode="json"), "pin": spec.pins["pull_model"]}


def _pull_reference(spec: Spec, index: int) -> dict[str, Any] | None:
    reference = spec.recipe.reference
    if isinstance(reference, TrainedReference):
        return {
            "data": reference.data.model_dump(mode="json"),
            "on_contamination": spec.recipe.data.on_contamination,
            "pin": spec.pins["pull_reference"],
        }
    trusted = _trusted_model(spec.recipe)
    return {"model": trusted.model_dump(mode="json"), "pin": spec.pins["pull_reference"]} if trusted else None


def _trusted_model(recipe: Recipe) -> ModelSource | None:
    """A model that is taken as it is to say what is good: a given reference, or a reward model."""
    if isinstance(recipe.reference, GivenReference):
        return recipe.reference.model
    if isinstance(recipe.scoring, Critic) and isinstance(recipe.scoring.reward, ModelReward):
        return recipe.scoring.reward.model
    return None


def _pull_reference_inputs(spec: Spec, index: int) -> dict[str, Input]:
    # What the reference is trained on is held against what it will judge the losses of.
    return {"data": Input("pull_data")} if isinstance(spec.recipe.reference, TrainedReference) else {}


def _fold(spec: Spec) -> dict[str, int] | None:
    reference = spec.recipe.reference
    return (
        {"num_folds": reference.num_folds, "seed": spec.recipe.seed}
        if isinstance(reference, CrossFittedReference)
        else None
    )


def _reference(spec: Spec, index: int) -> dict[str, Any] | None:
    reference = spec.recipe.reference
    if reference is None or isinstance(reference, GivenReference):
        return None
    fold = _fold(spec)
    return {
        "train": reference.train.model_dump(mode="json"),
        "text": spec.recipe.text.model_dump(mode="json"),
        "seed": spec.recipe.seed,
        "scoring": {"scorer": "uniform"},
        "weighting": None,
        "fold": {**fold, "fold": index} if fold else None,
    }


def _reference_inputs(spec: Spec, index: int) -> dict[str, Input]:
    data = "pull_reference" if isinstance(spec.recipe.reference, TrainedReference) else "pull_data"
    return {"data": Input(data, files=_TRAINING_DATA), "model": Input("pull_model", files=("model/*",))}


def _reward(spec: Spec, index: int) -> dict[str, Any] | None:
    recipe, scoring = spec.recipe, spec.recipe.scoring
    if not isinstance(scoring, Critic):
        return None
    judged = {"min_seconds", "reference_factor"} if isinstance(scoring.reward, TestsReward) else set()
    return {
        "reward": scoring.reward.kind,
        "candidates": scoring.candidates.model_dump(mode="json"),
        "text": recipe.text.model_dump(mode="json"),
        **recipe.evaluation.model_dump(mode="json", include={"max_new_tokens", "precision", *judged}),
        "seed": recipe.seed,
    }


def _reward_inputs(spec: Spec, index: int) -> dict[str, Input]:
    inputs = _learnt_from(("model/*",))
    return inputs | (
        {"reward_model": Input("pull_reference", files=("model/*",))} if _trusted_model(spec.recipe) else {}
    )


def _fit_critic(spec: Spec, index: int) -> dict[str, Any] | None:
    recipe, scoring = spec.recipe, spec.recipe.scoring
    if not isinstance(scoring, Critic):
        return None
    head = scoring.value_head.model_dump(mode="json")
    return {"value_head": head, "text": recipe.text.model_dump(mode="json"), "seed": recipe.seed}


def _fit_critic_inputs(spec: Spec, index: int) -> dict[str, Input]:
    return _learnt_from(("model/*",)) | {"rewards": Input("reward")}


def _learnt_from(model_files: tuple[str, ...]) -> dict[str, Input]:
    return {
        "data": Input("pull_data", files=("train.parquet", "prompt.parquet")),
        "model": Input("pull_model", files=model_files),
    }


def _score(spec: Spec, index: int) -> dict[str, Any] | None:
    recipe = spec.recipe
    if isinstance(recipe.scoring, Uniform):
        return None
    # What is made of the scores (excess, weighting, heads) belongs to `train`, so that a sweep over it finds them ready.
    scoring = recipe.scoring.model_dump(mode="json", include={"scorer", "mode", "min_gain"})
    return {"scoring": scoring, "text": recipe.text.model_dump(mode="json"), "seed": recipe.seed, "fold": _fold(spec)}


def _score_shard(spec: Spec, index: int) -> dict[str, Any] | None:
    config = _score(spec, index)
    return config and {**config, "shard": index, "num_shards": spec.fan_out["score_shard"]}


def _score_inputs(spec: Spec, index: int) -> dict[str, Input]:
    scoring, reference = spec.recipe.scoring, spec.recipe.reference
    needs_base = scoring.scorer in ("shuffled", "critic") or (isinstance(scoring, Rho1) and scoring.mode == "static")
    inputs = _learnt_from(("model/*",) if needs_base else _TOKENIZER_FILES)
    if isinstance(scoring, Critic):
        inputs |= {"rewards": Input("reward"), "critic": Input("fit_critic")}
    if isinstance(reference, GivenReference):
        inputs["reference0"] = Input("pull_reference", files=("model/*",))
    elif reference is not None:
        inputs |= {f"reference{k}": Input("reference", k, files=("model/*",)) for k in range(spec.fan_out["reference"])}
    return inputs


def _merge_inputs(spec: Spec, index: int) -> dict[str, Input]:
    shards = {f"shard{i}": Input("score_shard", i, is_keyed=False) for i in range(spec.fan_out["score_shard"])}
    return _score_inputs(spec, index) | shards


def _train(spec: Spec, index: int) -> dict[str, Any]:
    recipe = spec.recipe
    is_weighted = not isinstance(recipe.scoring, Uniform)
    return {
        "train": recipe.train.model_dump(mode="json"),
        "text": recipe.text.model_dump(mode="json"),
        "seed": recipe.seed,
        "scoring": recipe.scoring.model_dump(mode="json", include={"scorer", "mode", "excess"}),
        "fold": None,
        "weighting": recipe.weighting.model_dump(mode="json") if is_weighted else None,
    }


def _train_inputs(spec: Spec, index: int) -> dict[str, Input]:
    return {
        "data": Input("pull_data", files=_TRAINING_DATA),
        "model": Input("pull_model", files=("model/*",)),
        "scores": Input("score"),
    }


def _generate(spec: Spec, index: int) -> dict[str, Any]:
    evaluation = spec.recipe.evaluation
    return {
        **evaluation.model_dump(mode="json", include={*_ASKED, "max_new_tokens", "precision"}),
        "problems": _evaluation_set(spec, index).model_dump(mode="json"),
        "seed": spec.recipe.seed if evaluation.temperature > 0 else None,
    }


def _judge(spec: Spec, index: int) -> dict[str, Any]:
    evaluation = spec.recipe.evaluation
    return {
        **evaluation.model_dump(mode="json", include={*_ASKED, "k", "min_seconds", "reference_factor"}),
        "problems": _evaluation_set(spec, index).model_dump(mode="json"),
    }


def _evaluation_set(spec: Spec, index: int) -> EvaluationSet:
    chosen: EvaluationSet = getattr(spec.recipe.evaluation, EVALUATIONS[index][1])
    return chosen


def _evaluation_data(spec: Spec, index: int) -> Input:
    return Input("pull_data", files=(f"{_evaluation_set(spec, index).split}.parquet", "prompt.parquet"))


def _generate_inputs(spec: Spec, index: int) -> dict[str, Input]:
    baseline = CHAMPION if spec.champion else "pull_model"
    # Only what decodes is keyed: heads 2..H do not, so a model that was judged before is a hit whatever made it.
    model = Input("train" if EVALUATIONS[index][0] == "candidate" else baseline, files=("model/*",))
    return {"data": _evaluation_data(spec, index), "model": model}


def _judge_inputs(spec: Spec, index: int) -> dict[str, Input]:
    return {"data": _evaluation_data(spec, index), "completions": Input("generate", index)}


def _text_protocol(spec: Spec) -> tuple[str, ...]:
    return (module_of(spec.recipe.text.prompt),)


def _evaluation_protocol(spec: Spec) -> tuple[str, ...]:
    return (module_of(spec.recipe.evaluation.protocol),)


def _train_packages(spec: Spec) -> tuple[str, ...]:
    return _packages_of(spec.recipe.train)


def _reference_packages(spec: Spec) -> tuple[str, ...]:
    reference = spec.recipe.reference
    return () if reference is None or isinstance(reference, GivenReference) else _packages_of(reference.train)


def _packages_of(train: Train) -> tuple[str, ...]:
    return _PACKAGES_OF_METHODS.get(train.method.kind, ())


def _num_references(recipe: Recipe, environment: Environment) -> int:
    return recipe.reference.num_folds if isinstance(recipe.reference, CrossFittedReference) else 1


def _training_labels(spec: Spec) -> dict[str, str]:
    return {"experiment": experiment_name(spec.recipe)}


TASKS: dict[str, Task] = {
    task.id: task
    for task in (
        Task("pull_data", PULL, config=_pull_data),
        Task("pull_model", PULL, config=_pull_model),
        Task("pull_reference", PULL, _pull_reference_inputs, _pull_reference),
        Task(
            "reference",
            TRAIN,
            _reference_inputs,
            _reference,
            fan_out=_num_references,
            modules=_text_protocol,
            packages=_reference_packages,
            num_devices=lambda environment: environment.train.num_ranks * environment.train.num_pods,
        ),
        Task("reward", REWARD, _reward_inputs, _reward, modules=_text_protocol),
        Task("fit_critic", FIT_CRITIC, _fit_critic_inputs, _fit_critic, modules=_text_protocol),
        Task(
            "score_shard",
            SCORE_SHARD,
            _score_inputs,
            _score_shard,
            fan_out=lambda recipe, environment: environment.score.num_shards,
            modules=_text_protocol,
            covered_by="score",
        ),
        Task("score", SCORE, _merge_inputs, _score, modules=_text_protocol),
        Task(
            "train",
            TRAIN,
            _train_inputs,
            _train,
            num_devices=lambda environment: environment.train.num_ranks * environment.train.num_pods,
            labels=_training_labels,
            modules=_text_protocol,
            packages=_train_packages,
        ),
        Task(
            "generate",
            GENERATE,
            _generate_inputs,
            _generate,
            fan_out=lambda recipe, environment: len(EVALUATIONS),
            modules=_evaluation_protocol,
        ),
        Task(
            "judge",
            JUDGE,
            _judge_inputs,
            _judge,
            fan_out=lambda recipe, environment: len(EVALUATIONS),
            modules=_evaluation_protocol,
        ),
        Task("promote", "mlops_tasks.registry.promotion:promote"),
        Task("report", "mlops_tasks.report:report"),
    )
}


WATCH = Task("watch", "mlops_tasks.registry.watch:watch")
"""What the champion's evaluation ends with; no part of the daily run."""

CONTRAST = Task("contrast", "mlops_tasks.report.algorithms:contrast")
"""What a comparison of algorithms ends with, in the run of any of its cells; no part of the daily run."""

CHAMPION_GATE = EVALUATIONS.index(("baseline", "gate"))
CANDIDATE_REPORT = EVALUATIONS.index(("candidate", "report"))


def _select(spec: Spec, index: int) -> dict[str, Any] | None:
    if spec.recipe.tuning is None:
        return None
    return {"recipe": spec.recipe.model_dump(mode="json"), "pins": spec.pins}


def _of_trials(spec: Spec) -> tuple[str, ...]:
    """What a trial runs: `select` imports none of it, for a trial is a run of these stages."""
    stages = {task.run for task in TASKS.values() if isinstance(task.run, Stage)}
    return tuple(
        sorted(
            {stage.function.partition(":")[0] for stage in stages}
            | {*_text_protocol(spec), *_evaluation_protocol(spec)}
        )
    )


def _packages_of_trials(spec: Spec) -> tuple[str, ...]:
    return tuple(sorted({*_train_packages(spec), *_reference_packages(spec), *_packages_in_space(spec)}))


def _packages_in_space(spec: Spec) -> Iterator[str]:
    """Of the methods that trials may choose."""
    space = spec.recipe.tuning.space if spec.recipe.tuning else {}
    for name, parameter in space.items():
        if name.endswith(".method.kind") and isinstance(parameter, Choice):
            yield from (one for kind in parameter.choices for one in _PACKAGES_OF_METHODS.get(str(kind), ()))


STUDY: dict[str, Task] = {
    task.id: task
    for task in (
        Task(
            "search",
            "mlops_tasks.tuning.study:search",
            fan_out=lambda recipe, environment: environment.tune.num_workers,
            covered_by="select",
        ),
        Task("select", SELECT, config=_select, modules=_of_trials, packages=_packages_of_trials),
        Task("conclude", "mlops_tasks.tuning.conclusion:conclude"),
    )
}
"""What a study ends with, after the daily run's tasks up to `score`."""


def every() -> dict[str, Task]:
    """All tasks of all DAGs, by id."""
    return {**TASKS, WATCH.id: WATCH, CONTRAST.id: CONTRAST, **STUDY}


def task_named(name: str) -> Task:
    """The task with this id.

    Raises:
        UserError: there is none; lists those that there are.
    """
    known = every()
    if name not in known:
        raise UserError(f"There is no task {name!r}. The tasks are plan, {', '.join(known)}.")
    return known[name]


def places(spec: Spec) -> list[tuple[Task, int]]:
    """All tasks of a run with their indices, in order, after `plan`."""
    if spec.only_champion:
        mapped = [(TASKS[name], CHAMPION_GATE) for name in ("generate", "judge")]
        return [(TASKS["pull_data"], 0), *mapped, (WATCH, 0)]
    if spec.only_candidate:
        return [(task, index) for task in TASKS.values() for index in _indices_of_candidate(spec, task)]
    tasks = [*(TASKS[name] for name in PREPARATION), *STUDY.values()] if spec.is_study else TASKS.values()
    return [(task, index) for task in tasks for index in range(spec.fan_out.get(task.id, 1))]


def _indices_of_candidate(spec: Spec, task: Task) -> list[int]:
    if not isinstance(task.run, Stage):
        return []
    if task.id in ("generate", "judge"):
        return [CANDIDATE_REPORT]
    return list(range(spec.fan_out.get(task.id, 1)))


def plan(
    environment: Environment,
    prefix: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    force: Sequence[str] = (),
    only_champion: bool = False,
    is_study: bool = False,
) -> Run:
    """Resolve a recipe into the spec of a run and write it, or read the spec that is there already (a retry).

    Args:
        recipe: a file, or `tuned:NAME`: what the last study of the recipe NAME ended with.
        only_champion: see `Spec`.
        is_study: see `Spec`.

    Raises:
        UserError: a recipe that does not fit, a source that is not there, a task to force that does not exist.
    """
    started = time.monotonic()
    store = Store.of(environment)
    if store.read_json(f"{prefix}/spec.json") is None:
        spec = resolve(
            environment,
            recipe=recipe,
            overrides=overrides,
            force=force,
            only_champion=only_champion,
            is_study=is_study,
        )
        store.create_json(f"{prefix}/spec.json", spec.model_dump(mode="json"))
    run = Run.open(environment, prefix)
    run.point(Pointer(task="plan", index=0, stage="plan", outcome="done", seconds=round(time.monotonic() - started, 3)))
    return run


def resolve(
    environment: Environment,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    force: Sequence[str] = (),
    only_evaluates: bool = False,
    only_champion: bool = False,
    is_study: bool = False,
) -> Spec:
    """Pin everything that could move: data, models, champion.

    Args:
        recipe: see `plan`.
        only_evaluates: nothing is trained, and the recipe's own model is asked, whoever the champion is.
        only_champion: see `Spec`.
        is_study: see `Spec`; its space is tried first.

    Raises:
        UserError: a recipe that does not fit, a source that is not there, a task to force that does not exist.
    """
    from mlops_tasks.registry import champion
    from mlops_tasks.tuning.space import require_space

    for name in force:
        if not isinstance(task_named(name).run, Stage):
            raise UserError(
                f"force names {name!r}, which is an action and always runs. Stages are {', '.join(id for id, task in TASKS.items() if isinstance(task.run, Stage))}."
            )
    asked, tuned = asked_for(environment, recipe, overrides)
    if is_study:
        require_space(asked, environment)
    elif tuned is not None and asked.tuning is not None:
        asked = asked.untuned(asked.tuning.for_decisions(asked.evaluation.gate))
    _require_protocols(asked, only_evaluates=only_evaluates)
    found, pins = _pinned(asked, *_digests(environment.s3))
    return Spec(
        recipe=found,
        pins=pins,
        champion=None if only_evaluates or is_study else champion(environment, found.model.name),
        # Shards are in no key: to make them anew is to make anew what is merged of them.
        force=tuple(dict.fromkeys([*force, *(TASKS[name].covered_by or name for name in force)])),
        created=datetime.now(UTC).isoformat(),
        fan_out=fan_out_of(found, environment, {**TASKS, **(STUDY if is_study else {})}),
        only_champion=only_champion,
        is_study=is_study,
        tuned=tuned,
    )


def resolve_candidates(environment: Environment, recipes: Sequence[Recipe]) -> list[Spec]:
    """Pin several recipes whose candidates alone are wanted (see `Spec.only_candidate`); what they share is looked at once.

    Raises:
        UserError: a source that is not there, or a protocol that cannot ask for what the data has.
    """
    digests, created = _digests(environment.s3), datetime.now(UTC).isoformat()
    specs = []
    for recipe in recipes:
        _require_protocols(recipe, only_evaluates=False)
        found, pins = _pinned(recipe, *digests)
        fan_out = fan_out_of(found, environment, TASKS)
        specs.append(
            Spec(recipe=found, pins=pins, champion=None, created=created, fan_out=fan_out, only_candidate=True)
        )
    return specs


def asked_for(environment: Environment, recipe: str | Path, overrides: Sequence[str]) -> tuple[Recipe, Tuned | None]:
    """A recipe as it was asked for, with nothing pinned, and the study that it is the result of.

    Args:
        recipe: see `plan`.

    Raises:
        UserError: there is none, or an override does not fit it.
    """

    def fill_in(train: dict[str, Any], rest: Recipe) -> dict[str, Any]:
        from mlops_tasks import recommendation  # loads transformers, which a plan without `auto` does not need

        return recommendation.fill_in(train, model=rest.model.source, data=rest.data.source, access=environment.s3)

    if (name := tuned_name(recipe)) is None:
        return load_recipe(recipe, overrides, fill_in=fill_in), None
    from mlops_tasks.tuning.adoption import adopted

    tuned, file = adopted(Store.of(environment), name)
    return load_recipe(file, overrides, fill_in=fill_in), tuned


def tuned_name(recipe: str | Path) -> str | None:
    """The NAME of `tuned:NAME`, empty for `tuned` alone; None: it is a recipe's own name or file."""
    first, _, name = str(recipe).partition(":")
    return name if first == "tuned" else None


def fan_out_of(recipe: Recipe, environment: Environment, tasks: Mapping[str, Task]) -> dict[str, int]:
    """How many of each mapped task a recipe wants."""
    return {task.id: task.fan_out(recipe, environment) for task in tasks.values() if task.fan_out}


def _require_protocols(recipe: Recipe, *, only_evaluates: bool) -> None:
    """Before anything is trained: can the protocols ask for what the data has?"""
    kind = recipe.data.source.asks_for
    used = {"evaluation.protocol": recipe.evaluation.protocol}
    if not only_evaluates:
        used["text.prompt"] = recipe.text.prompt
    for place, protocol in used.items():
        if kind is not None and kind not in protocol_named(protocol).kinds:
            raise mismatch(
                protocol, kind, f"data.source ({recipe.data.source.kind}), which {place} is to be used with,"
            )


_DigestOf = Callable[[Any], str]


def _digests(access: S3Access) -> tuple[_DigestOf, _DigestOf]:
    """What lies at sources of data and of models now; each is looked at once."""
    return cache(lambda source: digest_of_source(source, access)), cache(lambda source: digest_of_model(source, access))


def _pinned(recipe: Recipe, digest_of_data: _DigestOf, digest_of_weights: _DigestOf) -> tuple[Recipe, dict[str, str]]:
    pins = {
        "pull_data": digest_of_data(recipe.data.source),
        "pull_model": digest_of_weights(recipe.model.source),
    }
    model = recipe.model.model_copy(update={"source": _at_commit(recipe.model.source, pins["pull_model"])})
    scoring, reference = recipe.scoring, recipe.reference
    if isinstance(reference, TrainedReference):
        pins["pull_reference"] = digest_of_data(reference.data)
    elif trusted := _trusted_model(recipe):
        pins["pull_reference"] = digest_of_weights(trusted)
        name = "reference" if reference else "reward"
        pinned = getattr(scoring, name).model_copy(update={"model": _at_commit(trusted, pins["pull_reference"])})
        scoring = scoring.model_copy(update={name: pinned})
    return recipe.model_copy(update={"model": model, "scoring": scoring}), pins


def _at_commit(source: ModelSource, commit: str) -> ModelSource:
    return source.model_copy(update={"revision": commit}) if isinstance(source, HubModel) else source


@dataclass(frozen=True)
class _Preview(Run):
    """A run that is only thought of: its pointers are in memory."""

    seen: dict[tuple[str, int], Pointer] = field(default_factory=dict)

    def pointer(self, task: str, index: int = 0) -> Pointer | None:
        return self.seen.get((task, index))

    def point(self, pointer: Pointer) -> Pointer:
        self.seen[pointer.task, pointer.index] = pointer
        return pointer


@dataclass(frozen=True)
class Forecast:
    """What a task would do."""

    task: str
    index: int
    outcome: Literal["hit", "run", "skipped", "done", "waits"]
    """`waits`: something above it runs first, and what that yields decides."""
    seconds: float | None
    """What it took last time; None: never seen, or no work to do."""
    cost: float | None = None
    """Of these seconds; None: they are not known, or have no price."""
    components: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[Input, Artifact]] = field(default_factory=dict)
    artifact: Artifact | None = None


def preview(environment: Environment, spec: Spec) -> Iterator[Forecast]:
    """What each task of a run with this spec would do; starts nothing and writes nothing."""
    run = _Preview(Store.of(environment), environment, "runs/preview", spec)
    took = _earlier_seconds(environment, spec.recipe.name)
    for task, index in places(spec):
        yield _forecast(run, task, index, statistics.median(took[task.id]) if task.id in took else None)


def _forecast(run: _Preview, task: Task, index: int, seconds: float | None) -> Forecast:
    cost = _cost(run.environment, task, seconds)
    try:
        decision = runtime.decide(run, task, index, tasks=every())
    except Unavailable:
        return Forecast(task.id, index, "waits", seconds, cost)
    found = (decision.components, decision.inputs, decision.artifact)
    if decision.outcome == "hit" and task.id in run.spec.force:
        return Forecast(task.id, index, "run", seconds, cost, *found)
    if decision.outcome in ("hit", "skipped"):
        artifact = decision.artifact
        run.point(
            Pointer(
                task=task.id,
                index=index,
                stage=task.verb,
                outcome=decision.outcome,
                seconds=0.0,
                key=decision.key if artifact else None,
                digest=artifact.digest if artifact else None,
            )
        )
        seconds = cost = None
    return Forecast(task.id, index, decision.outcome, seconds, cost, *found)


def _cost(environment: Environment, task: Task, seconds: float | None) -> float | None:
    if seconds is None or not isinstance(task.run, Stage):
        return None
    return environment.cost(task.run.name, seconds * task.num_devices(environment))


def _earlier_seconds(environment: Environment, recipe: str) -> dict[str, list[float]]:
    """What each task took in earlier runs of a recipe; where it was a hit, what its artifact had taken."""
    took: dict[str, list[float]] = {}
    for run in itertools.islice(runtime.runs(environment, recipe=recipe), _NUM_EARLIER_RUNS):
        with suppress(UserError):  # of an older version
            pointers = run.pointers()
            hits = [pointer for pointer in pointers if pointer.outcome == "hit"]
            manifests = run.store.read_jsons([f"{hit.prefix}/{MANIFEST}" for hit in hits])
            made_in = [float(one["seconds"]) if one else None for one in manifests]
            ran = [pointer for pointer in pointers if pointer.outcome in ("run", "done")]
            for pointer, seconds in [*((one, one.seconds) for one in ran), *zip(hits, made_in, strict=True)]:
                if seconds is not None:
                    took.setdefault(pointer.task, []).append(seconds)
    return took


def why(environment: Environment, spec: Spec, name: str) -> list[str]:
    """Lines that say which parts of a task's key changed since the last run that had a result of it.

    Raises:
        UserError: no such task, one without a key, or none of a run with this spec.
    """
    task = task_named(name)
    if not isinstance(task.run, Stage):
        raise UserError(f"{name} is an action: it has no key and always runs.")
    there = {one.id: one for one, _ in places(spec)}
    if name not in there:
        asked = ", ".join(one.id for one in there.values() if isinstance(one.run, Stage))
        raise UserError(f"{name} is no task of a run with this spec, and `why` looks ahead at one. Ask about {asked}.")
    last = next((artifact for run in runtime.runs(environment) if (artifact := _result_of(run, name))), None)
    forecasts = list(preview(environment, spec))
    now = next(one for one in forecasts if one.task == name and one.index == 0)
    if now.outcome == "waits":
        above = [one.task for one in forecasts if one.outcome == "run"]
        return [f"{name} waits for {', '.join(dict.fromkeys(above))}, which would run; ask `why` of that first."]
    if now.outcome == "skipped":
        return [f"{name} is not needed by this recipe."]
    if last is None:
        return [f"{name} has no earlier result in this store."]
    return changes(last, now.components, now.inputs) or [f"nothing changed: {last.uri}"]


def changes(last: Artifact, components: Mapping[str, Any], inputs: Mapping[str, tuple[Input, Artifact]]) -> list[str]:
    """Lines that say what differs between the key of an artifact and another one: the setting, the file, the code's module, the package.

    Args:
        last: whose key is compared with.
        components: of the other key.
        inputs: what the other key's inputs are made of.
    """
    lines = differences(last.manifest["components"], components)
    files = {f"inputs.{name}": _changed_files(last, name, *given) for name, given in inputs.items()}
    return [f"{place}: {files[place]}" if files.get(place := line.partition(":")[0]) else line for line in lines]


def _changed_files(last: Artifact, name: str, wanted: Input, artifact: Artifact) -> str:
    """In words; empty where nobody knows any more what the old input was made of."""
    given = last.manifest["inputs"].get(name)
    before = last.store.version_at(given["artifact"], given["digest"], given["files"]) if given else None
    if before is None:
        return ""
    old, new = before.entries(*given["files"]), artifact.entries(*wanted.files)
    words = [
        f"{file} {'changed' if file in old and file in new else 'new' if file in new else 'gone'}"
        for file in sorted(old.keys() | new.keys())
        if old.get(file) != new.get(file)
    ]
    return ", ".join(words)


def _result_of(run: Run, task: str) -> Artifact | None:
    pointer = run.pointer(task)
    return run.store.find(pointer.prefix) if pointer and pointer.prefix else None
