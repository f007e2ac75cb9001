"""The daily pipeline as a table: which tasks there are, what each reads, and which part of the recipe it is keyed by.

What a task does is in its stage's module; how it is run once is in `stage`; its place in time is the DAG's. How a recipe becomes the
spec that all tasks of a run read is `planning`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mlops_tasks.config.environment import Environment
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
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.sources import ModelSource
from mlops_tasks.config.space import Choice
from mlops_tasks.data.protocols import module_of
from mlops_tasks.errors import UserError
from mlops_tasks.stage import CHAMPION, Input, Spec, Stage, Task
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
    trusted = trusted_model(spec.recipe)
    return {"model": trusted.model_dump(mode="json"), "pin": spec.pins["pull_reference"]} if trusted else None


def trusted_model(recipe: Recipe) -> ModelSource | None:
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
        {"reward_model": Input("pull_reference", files=("model/*",))} if trusted_model(spec.recipe) else {}
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


def fan_out_of(recipe: Recipe, environment: Environment, tasks: Mapping[str, Task]) -> dict[str, int]:
    """How many of each mapped task a recipe wants."""
    return {task.id: task.fan_out(recipe, environment) for task in tasks.values() if task.fan_out}
