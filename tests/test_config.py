"""Recipes and environments: what loads, what is refused and how, and that no accepted setting is without effect."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from mlops_tasks.config.comparison import Comparison
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.loading import _read_yaml, as_yaml, load_comparison, load_environment, load_recipe
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError
from mlops_tasks.keys import without_paths
from mlops_tasks.pipeline import TASKS
from mlops_tasks.stage import Spec, Stage

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("environments/*.yaml")), ids=lambda path: path.stem)
def test_every_environment_loads_with_absolute_places(path: Path) -> None:
    environment = load_environment(path)
    assert Path(environment.store).is_absolute() or environment.store.startswith("s3://")
    assert environment.mlflow_uri.startswith(("sqlite:////", "http"))


def test_a_relative_path_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        (CONFIGS / "recipes/mbpp_smollm2.yaml").read_text().replace("../../.wmtp/data/", "here/")
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert getattr(recipe.data.source, "path", None) == str(tmp_path / "here/mbpp.jsonl")


def test_overrides_are_dotted_and_typed() -> None:
    recipe = load_recipe(
        CONFIGS / "recipes/demo.yaml",
        ["train.steps=7", "train.learning_rate=1e-4", "model.name=other", "train.patience=null"],
    )
    assert (recipe.train.steps, recipe.train.learning_rate, recipe.model.name, recipe.train.patience) == (
        7,
        1e-4,
        "other",
        None,
    )


def test_numbers_with_an_exponent_are_numbers_wherever_they_stand(tmp_path: Path) -> None:
    space = "{train.learning_rate: {kind: choice, choices: [1e-4, 4e-3, 1E-2]}}"
    recipe = load_recipe(CONFIGS / "recipes/demo.yaml", [f"tuning.space={space}", "train.steps=1e2"])
    assert recipe.tuning is not None and recipe.train.steps == 100
    assert recipe.tuning.space["train.learning_rate"].model_dump()["choices"] == (1e-4, 4e-3, 1e-2)
    (tmp_path / "comparison.yaml").write_text(
        "{name: c, recipe: r.yaml, baseline: a, algorithms: {a: {}, b: {grid: {train.learning_rate: [1e-4, .5e-3]}}}}"
    )
    assert load_comparison(tmp_path / "comparison.yaml").algorithms["b"].grid == {"train.learning_rate": (1e-4, 5e-4)}


def test_what_is_quoted_or_no_number_stays_a_string(tmp_path: Path) -> None:
    source = {"kind": "hub", "repo": "a/b", "revision": "REVISION"}
    tree = BASE | {"name": "NAME", "model": {"name": "m", "source": source}}
    text = yaml.safe_dump(tree).replace("NAME", '"1e3"').replace("REVISION", "12e4567")
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["model.name='2e5'"])
    assert (recipe.name, recipe.model.name) == ("1e3", "2e5")
    assert recipe.model.source.model_dump()["revision"] == "12e4567"


def test_settings_that_are_written_as_yaml_are_read_as_they_were(tmp_path: Path) -> None:
    tree = {"name": "1e3", "revision": "12e45", "rate": 1e-4, "small": 1e-20, "count": 3, "text": "α: 'b'"}
    (tmp_path / "settings.yaml").write_text(as_yaml(tree))
    assert _read_yaml(tmp_path / "settings.yaml") == tree


def test_weights_are_soft_unless_said_otherwise() -> None:
    recipe = load_recipe(CONFIGS / "recipes/demo.yaml", ["weighting.temperature=0.3"])
    assert recipe.weighting.model_dump(include={"kind", "temperature"}) == {"kind": "soft", "temperature": 0.3}


def test_an_override_of_a_kind_starts_that_part_anew() -> None:
    recipe = load_recipe(
        CONFIGS / "recipes/demo.yaml", ["scoring.scorer=random", "weighting.kind=select", "weighting.top_share=0.5"]
    )
    assert recipe.scoring.model_dump() == {"scorer": "random"}
    assert recipe.weighting.model_dump() == {"kind": "select", "top_share": 0.5, "strength": 1.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "is not of the form a.b=value"),
        ("train.stepz=3", r"train\.stepz is not a setting; check its spelling"),
        ("train.steps=-1", r"train\.steps is -1: Input should be greater than or equal to 1"),
        ("train.epochs=2", "exactly one of epochs and steps must be given; got epochs=2"),
        ("train.steps.more=2", "goes into 'steps', which is 280 and has no parts"),
        ("train.steps=[", "is not YAML"),
        (
            "scoring.scorer=best",
            "scoring.* Input tag 'best' found using 'scorer' does not match any of the expected tags: 'uniform', 'rho1'",
        ),
        ("evaluation.k=[5]", r"k=\[5\]: each k must be from 1 to num_samples=1"),
        ("evaluation.num_samples=5", "temperature 0 is greedy"),
        ("evaluation.gate.split=test", "a set that decides must not be the one that is shown"),
        ("train.keep=best", r"train\.keep chooses weights by the validation problems, so evaluation\.gate must not"),
        ("train.patience=3", r"train\.patience chooses weights by the validation problems"),
        (
            "evaluation.report={split: test, skip: 100}",
            r"evaluation\.report\.skip is 100, but the split test has 100 problems",
        ),
        ("model.source.hidden_size=100", "Input should be a multiple of 32"),
        ("train.learning_rate=.inf", "Input should be a finite number"),
        (
            "scoring={scorer: critic, candidates: {num_samples: 0, num_mutants: 0}}",
            "num_samples and num_mutants are both 0: a critic needs good and bad solutions",
        ),
        ("seed=-1", "seed is -1: Input should be greater than or equal to 0"),
        ("name=1e3", r"name is 1000\.0: Input should be a valid string; put it in quotes"),
        ("name=a b", "name is 'a b': String should match pattern"),
        ("gate.min_score=70", r"gate\.min_score is 70: Input should be less than or equal to 1"),
        (
            "gate.no_regression={a: {ids: []}}",
            r"gate\.no_regression\.a\.ids is \[\]: Tuple should have at least 1 item",
        ),
        ("gate.no_regression={a b: {ids: [x]}}", r"gate\.no_regression\.a b.* String should match pattern"),
        ("gate.max_model_byte=7", r"gate\.max_model_byte is not a setting; check its spelling"),
    ],
)
def test_bad_settings_are_refused_with_their_place(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(CONFIGS / "recipes/demo.yaml", [override])


@pytest.mark.parametrize(
    ("report", "is_apart"),
    [({"skip": 40}, True), ({"skip": 39}, False), ({"limit": 5}, False), ({"skip": 60, "limit": 5}, True)],
)
def test_a_split_may_be_parted_between_gate_and_report(report: dict[str, int], is_apart: bool) -> None:
    gate, shown = EvaluationSet(split="test", limit=40), EvaluationSet(split="test", **report)
    assert gate.shares_problems_with(shown) is shown.shares_problems_with(gate) is not is_apart


def test_weights_of_a_uniform_training_are_refused() -> None:
    changes = ["scoring.scorer=uniform", "weighting.kind=select"]
    with pytest.raises(UserError, match=r"weighting has no effect with scoring\.scorer uniform"):
        load_recipe(CONFIGS / "recipes/demo.yaml", changes)
    plain = load_recipe(CONFIGS / "recipes/demo.yaml", changes[:1])
    assert Recipe.model_validate(plain.model_dump(mode="json")) == plain


def test_a_limit_of_contamination_is_refused_where_none_is_let_through() -> None:
    limit = "gate.max_contamination=0.01"
    assert load_recipe(CONFIGS / "recipes/demo.yaml", [limit]).gate.max_contamination == 0.01
    with pytest.raises(UserError, match=r"max_contamination is 0\.01, but data\.on_contamination is refuse"):
        load_recipe(CONFIGS / "recipes/demo.yaml", [limit, "data.on_contamination=refuse"])


def test_a_part_of_an_evaluation_set_keeps_the_split_that_it_has_by_default() -> None:
    recipe = load_recipe(CONFIGS / "recipes/demo.yaml", ["evaluation.gate.skip=10", "evaluation.report.limit=5"])
    assert recipe.evaluation.gate == EvaluationSet(split="validation", skip=10)
    assert recipe.evaluation.report == EvaluationSet(split="test", limit=5)


def test_what_weights_are_chosen_by_is_not_shown_either() -> None:
    parts = ["evaluation.gate={split: test}", "evaluation.report={split: validation}"]
    assert load_recipe(CONFIGS / "recipes/demo.yaml", parts).evaluation.report.split == "validation"
    with pytest.raises(
        UserError, match=r"train\.keep chooses .*evaluation\.report must not show them too: set evaluation\.report"
    ):
        load_recipe(CONFIGS / "recipes/demo.yaml", ["train.keep=best", *parts])


def test_a_cross_fitted_reference_must_not_choose_by_the_gates_problems_either(tmp_path: Path) -> None:
    tree = BASE | {
        "scoring": {"scorer": "rho1", "reference": {"kind": "cross-fitted", "train": {"steps": 5, "patience": 2}}}
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree | {"evaluation": {}}))
    with pytest.raises(UserError, match=r"scoring\.reference\.train\.patience chooses weights by the validation"):
        load_recipe(tmp_path / "recipe.yaml")


def test_weights_may_be_chosen_by_validation_where_the_gate_has_problems_of_its_own() -> None:
    parts = ["evaluation.gate={split: test, limit: 40}", "evaluation.report={split: test, skip: 40}"]
    recipe = load_recipe(CONFIGS / "recipes/demo.yaml", ["train.keep=best", *parts])
    assert recipe.evaluation.gate == EvaluationSet(split="test", limit=40)


def test_a_missing_file_names_those_beside_it() -> None:
    with pytest.raises(UserError, match=r"There is no file .*demoo\.yaml\. Beside it: .*demo\.yaml"):
        load_recipe(CONFIGS / "recipes/demoo.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- 1", "holds list, not a mapping"), ("", "holds NoneType")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "r.yaml")


# Every leaf has an effect. The recipes below hold every setting there is; `FELT_ELSEWHERE` names those that are in no key
# and the test that shows what they do.

FELT_ELSEWHERE = {
    "name": "test_tracking: names the experiment",
    "model.name": "test_registry: names the registered model",
    "gate.min_difference": "test_registry: test_every_setting_of_the_gate_counts",
    "gate.confidence": "test_registry: test_every_setting_of_the_gate_counts",
    "gate.num_resamples": "test_registry: test_every_setting_of_the_gate_counts",
    **dict.fromkeys(
        (
            f"gate.{name}"
            for name in (
                "min_score",
                "no_regression.part.ids",
                "no_regression.part.max_loss",
                "max_model_bytes",
                "min_tokens_per_second",
                "max_contamination",
            )
        ),
        "test_gates: one test each",
    ),
    "tuning": "tuning/test_study: test_every_setting_of_a_tuning_is_in_the_key_of_its_study",
    "watch.max_loss": "test_watch: test_a_loss_counts_that_is_more_than_may_be_lost_and_than_chance",
    "watch.min_score": "test_watch: test_the_score_may_have_a_limit_of_its_own_which_chance_does_not_break",
}
TRAIN = {"steps": 5}
RANDOM = {"kind": "random"}
GENERATED = {"kind": "generated"}
BASE: dict[str, Any] = {
    "name": "n", "data": {"source": GENERATED}, "model": {"name": "m", "source": RANDOM}, "train": TRAIN,
    "scoring": {"scorer": "uniform"}, "evaluation": {
        "num_samples": 4, "temperature": 0.5, "top_p": 0.5, "gate": {"split": "test", "limit": 40}, "report": {"split": "test", "skip": 60},
    },
    "gate": {"no_regression": {"part": {"ids": ["a*"]}}},
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {"scoring": {"scorer": "rho1", "reference": {"kind": "trained", "data": GENERATED, "train": TRAIN}}},
    {"scoring": {"scorer": "rho1", "mode": "static", "reference": {"kind": "cross-fitted", "train": TRAIN}}, "weighting": {"kind": "select"}},
    {"scoring": {"scorer": "shuffled", "reference": {"kind": "given", "model": RANDOM}}},
    {"scoring": {"scorer": "random"}, "train": {"epochs": 2.0}, "model": {"name": "m", "source": {"kind": "hub", "repo": "a/b"}}},
    {"scoring": {"scorer": "position"}, "data": {"source": {"kind": "mbpp", "path": "/x"}}, "model": {"name": "m", "source": {"kind": "folder", "path": "/y"}}},
    {"scoring": {"scorer": "random"}, "data": {"source": {"kind": "table", "path": "/x", "columns": {"tests": "t"}}}, "train": {"steps": 5, "method": {"kind": "qlora"}}},
    {"scoring": {"scorer": "critic"}, "train": {"steps": 5, "method": {"kind": "lora"}}},
    {"scoring": {"scorer": "critic", "reward": {"kind": "model", "model": {"kind": "hub", "repo": "a/b"}}}},
    {"scoring": {"scorer": "position"}, "data": {"source": {"kind": "table", "path": "/x", "columns": {"inputs": "i", "outputs": "o"}}}},
]  # fmt: skip


def leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from leaves(child, (*place, name))
    else:
        yield place


def changed_value(name: str, value: Any) -> list[Any]:
    closed = {
        "prompt": ["begin-done-3shot"], "protocol": ["begin-done-3shot"], "precision": ["bfloat16"], "keep": ["best"],
        "mode": ["static", "dynamic"], "excess": ["abs"], "head_balance": ["equal"], "head_kind": ["layer"], "on_contamination": ["drop"], "k": [[2]], "num_samples": [5], "hidden_size": [64], "ids": [["b*"]], "targets": [["a"]],
    }  # fmt: skip
    if name in closed:
        return [choice for choice in closed[name] if choice != value]
    if value is None:
        return [3, 0.5, "x"]
    if isinstance(value, float):
        return [value / 2 + 0.01, value * 2 + 0.5, value * 0.9]
    return [value + 1] if isinstance(value, int) else [f"{value}x"]


def keyed_parts(recipe: Recipe) -> list[Any]:
    environment = Environment(store="s", mlflow_uri="m")
    fan_out = {task.id: task.fan_out(recipe, environment) for task in TASKS.values() if task.fan_out}
    spec = Spec(
        recipe=recipe,
        pins={"pull_data": "d", "pull_model": "m", "pull_reference": "r"},
        champion=None,
        created="",
        fan_out=fan_out,
    )
    parts = [(task.id, index, task.config(spec, index), repr(task.inputs(spec, index))) for task in TASKS.values() for index in range(fan_out.get(task.id, 1)) if isinstance(task.run, Stage)]  # fmt: skip
    return [without_paths(list(part)) for part in parts]


def mutations(variant: dict[str, Any]) -> Iterator[tuple[str, Recipe | None]]:
    tree = Recipe.model_validate(BASE | variant).model_dump(mode="json")
    for place in leaves(tree):
        # Other kinds are other variants, of tests too; a path is keyed by what lies there; a split may not be shared.
        if place[-1] in ("kind", "scorer", "path", "split") or (
            place[-1] in ("tests", "inputs", "outputs") and _at(tree, place) is None
        ):
            continue
        if place[-1] != "tuning":  # a part of its own, or none
            yield ".".join(place), next(_valid(tree, place), None)


def _valid(tree: dict[str, Any], place: tuple[str, ...]) -> Iterator[Recipe]:
    for value in changed_value(place[-1], _at(tree, place)):
        other = copy.deepcopy(tree)
        _at(other, place[:-1])[place[-1]] = value
        if place[-1] == "epochs":
            _at(other, place[:-1])["steps"] = None
        if place[-1] == "steps":
            _at(other, place[:-1])["epochs"] = None
        if place[-1] == "max_contamination":
            other["data"]["on_contamination"] = "drop"
        try:
            yield Recipe.model_validate(other)
        except ValueError:
            continue


def _at(tree: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda variant: variant["scoring"]["scorer"] + "-" + variant["scoring"].get("mode", "")
)
def test_every_setting_of_a_recipe_changes_a_key(variant: dict[str, Any]) -> None:
    before = keyed_parts(Recipe.model_validate(BASE | variant))
    for place, mutated in mutations(variant):
        assert mutated is not None, f"no other valid value was found for {place}"
        if place not in FELT_ELSEWHERE:
            assert keyed_parts(mutated) != before, f"{place} is accepted and changes no key"


def test_the_split_of_a_source_changes_the_key_of_its_data() -> None:
    for source in ({"kind": "humaneval"}, {"kind": "codecontests"}, {"kind": "table", "columns": {"tests": "t"}}):
        parts = [
            keyed_parts(Recipe.model_validate(BASE | {"data": {"source": source | {"path": "/x", "split": split}}}))
            for split in ("test", "train", None)
        ]
        assert parts[0] != parts[1] != parts[2] != parts[0]


# Nothing of an environment is in a key. So each of its settings names the test that shows what it does, and is read outside of `config`.

FELT_IN_ENVIRONMENT = {
    "scheduled_recipe": "airflow/test_operators: test_a_scheduled_run_takes_the_recipe_of_the_environment_file",
    "deployment": "test_housekeeping: test_what_kept_runs_need_stays_down_to_the_first_input_and_the_rest_goes",
    "executor": "airflow/test_manifest: test_what_runs_at_one_time_is_the_environment_files_business_and_on_a_laptop_one_task",
    "store": "test_store: test_a_file_uri_and_a_path_are_the_same_store",
    **dict.fromkeys(
        ("s3.endpoint", "s3.region", "s3.addressing_style", "s3.cache"),
        "test_store: test_every_setting_of_an_access_reaches_the_client",
    ),
    "lease.ttl_seconds": "test_lease: test_a_holder_without_a_sign_of_life_is_followed_after_a_whole_term",
    "lease.wait_seconds": "test_lease: test_one_that_may_not_wait_leaves_and_says_who_works",
    "mlflow_uri": "test_tracking: test_a_server_that_is_down_is_told_within_seconds",
    "mlflow_artifacts": "test_tracking: test_files_of_a_local_store_lie_where_the_environment_says",
    "prices": "test_ledger: test_a_stage_costs_its_own_price_or_the_default_one",
    "currency": "test_card: test_what_it_cost_is_told_in_money_only_where_prices_are_set",
    "score.num_shards": "test_daily: test_the_number_of_shards_changes_neither_key_nor_bytes",
    "train.num_ranks": "test_training: test_sigterm_checkpoints_and_all_ranks_resume_to_the_same_bytes",
    "train.num_pods": "airflow/test_manifest: test_a_training_is_an_indexed_job_of_which_only_interrupted_pods_are_replaced",
    "train.micro_batch_rows": "test_training: test_too_little_memory_halves_the_micro_batch_and_changes_no_step",
    "train.loss_chunk_rows": "test_training: test_chunks_of_the_loss_are_as_large_as_the_environment_says",
    "train.parallelism": "test_training: test_a_model_in_parts_on_two_ranks_equals_one_process",
    "train.recompute_activations": "test_memory: test_the_model_agrees_with_real_peaks",
    "train.on_oom": "test_training: test_too_little_memory_halves_the_micro_batch_and_changes_no_step",
    "train.checkpoint_every_steps": "test_training: test_only_the_last_checkpoints_are_kept",
    "train.keep_last": "test_training: test_only_the_last_checkpoints_are_kept",
    "generate.batch_size": "evaluation/test_generation: test_the_same_attempt_yields_the_same_bytes",
    "generate.speculation": "evaluation/test_generation: test_heads_beside_the_model_guess_and_change_no_completion",
    "judge.num_workers": "evaluation/test_sandbox: test_a_sandbox_leaves_neither_process_nor_folder",
    "judge.unsafe": "evaluation/test_sandbox: test_unsafe_runs_programs_where_nothing_else_can_and_says_so",
    "tune.storage": "tuning/test_study: test_a_database_that_is_away_is_said_so",
    "tune.num_workers": "airflow/test_tune: test_a_study_whose_worker_is_killed_three_times_ends_with_a_recipe_that_a_night_learns",
    "tune.heartbeat_seconds": "tuning/test_study: test_a_worker_that_is_killed_in_a_trial_costs_no_trial",
    "tune.grace_seconds": "tuning/test_study: test_a_worker_that_is_killed_in_a_trial_costs_no_trial",
    **dict.fromkeys(
        ("housekeeping.keep_runs", "housekeeping.grace_days"),
        "airflow/test_cleaning: test_how_much_is_kept_is_the_environment_files_business",
    ),
    "housekeeping.mlflow_days": "test_old_runs: test_the_policy_of_the_environment_file_decides",
    "housekeeping.delete": "airflow/test_cleaning: test_the_form_decides_and_else_the_environment_file",
    "approval.hours": "airflow/test_approval: test_a_person_is_shown_the_gates_and_the_run_and_has_so_long_to_answer",
    **dict.fromkeys(
        ("notices.connection", "notices.to", "notices.sender"),
        "airflow/test_notices: test_a_promotion_is_told_by_mail_to_slack_and_to_a_webhook",
    ),
    "notices.events": "airflow/test_notices: test_only_what_was_asked_for_is_told",
    **dict.fromkeys(
        ("kubernetes.max_runs", "kubernetes.max_tasks", "kubernetes.profiles.pool"),
        "airflow/test_manifest: test_what_runs_at_one_time_is_the_environment_files_business_and_on_a_laptop_one_task",
    ),
    **dict.fromkeys(
        ("kubernetes.connection", "kubernetes.profiles.start_seconds"),
        "airflow/test_manifest: test_what_an_operator_asks_the_cluster_with_is_the_environment_files_business",
    ),
    **dict.fromkeys(
        [f"kubernetes.{name}" for name in ("namespace", "tasks", "service_accounts", "secrets.secret", "secrets.key", "config_maps")]
        + [f"kubernetes.profiles.tolerations.{name}" for name in ("key", "operator", "value", "effect")]
        + [
            f"kubernetes.profiles.{name}"
            for name in (
                "image", "service_account", "requests", "limits", "node_selector", "runtime_class", "priority_class", "queue", "same_zone",
                "shared_memory", "scratch", "variables",
            )
        ],
        "airflow/test_manifest: test_every_setting_of_a_pod_changes_what_is_submitted",
    ),
}  # fmt: skip


def settings_below(model: type[BaseModel], place: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        parts = list(models_in(field.annotation))
        for part in parts:
            yield from settings_below(part, f"{place}{name}.")
        if not parts and name != "kind":
            yield f"{place}{name}"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def names_read() -> set[str]:
    """Attributes that are asked for anywhere outside of `config`."""
    return {
        node.attr
        for folder in ("mlops_tasks", "plugins", "dags")
        for path in (CONFIGS.parent / folder).rglob("*.py")
        if path.parent.name != "config"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }


def test_every_setting_of_a_recipe_and_of_a_comparison_is_read() -> None:
    read = names_read()
    places = {*settings_below(Recipe), *settings_below(Comparison)}
    assert not {place for place in places if place.rpartition(".")[2] not in read}


def test_every_setting_of_an_environment_is_read_and_a_test_shows_what_it_does() -> None:
    tests, read = Path(__file__).parent, names_read()
    assert set(settings_below(Environment)) == set(FELT_IN_ENVIRONMENT)
    for place, told in FELT_IN_ENVIRONMENT.items():
        file, name = told.split(": ")
        assert f"def {name}(" in (tests / f"{file}.py").read_text(), f"{place} names {name}, which is not in {file}.py"
    # Prices are asked for by `Environment.cost`.
    assert {place for place in FELT_IN_ENVIRONMENT if place.rpartition(".")[2] not in read} == {"prices"}


def test_a_recipes_setting_that_is_in_no_key_names_a_test_that_is_there() -> None:
    tests = Path(__file__).parent
    for place, told in FELT_ELSEWHERE.items():
        file, _, name = told.partition(": ")
        text = (tests / f"{file}.py").read_text()
        assert not name.startswith("test_") or f"def {name}(" in text, (
            f"{place} names {name}, which is not in {file}.py"
        )
