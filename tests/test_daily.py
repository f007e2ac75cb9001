"""The whole pipeline on a model of a few thousand weights: what runs, what hits, what a changed setting touches."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from mlops_tasks import pipeline, stage
from mlops_tasks.__main__ import main
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Pointer, Run

RECIPE = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 4}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "rho1", "reference": {"kind": "cross-fitted", "num_folds": 2, "train": {"num_heads": 1, "steps": 2, "batch_size": 4}}},
    "train": {"num_heads": 2, "steps": 3, "batch_size": 8, "learning_rate": 0.003},
    "evaluation": {"max_new_tokens": 8, "gate": {"split": "validation", "limit": 4}},
}  # fmt: skip
ENVIRONMENT = {
    "store": "store",
    "mlflow_uri": "sqlite:///mlflow.db",
    "mlflow_artifacts": "mlflow",
    "score": {"num_shards": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("daily")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    return folder


def wmtp(place: Path, *arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([*arguments[:1], "--env", str(place / "environment.yaml"), *arguments[1:]])
    return code, out.getvalue()


def day(place: Path, name: str, *overrides: str) -> Run:
    """Every task in the DAG's order, as its own call of the program."""
    environment = load_environment(place / "environment.yaml")
    prefix = Run.prefix_of(environment, "wmtp_daily", name)
    spec = f"{environment.store}/{prefix}/spec.json"
    sets = [part for override in overrides for part in ("--set", override)]
    assert wmtp(place, "plan", "--spec", spec, "--recipe", str(place / "recipe.yaml"), *sets)[0] == 0
    run = Run.open(environment, prefix)
    for task in pipeline.TASKS.values():
        for index in range(run.spec.fan_out.get(task.id, 1)):
            done = wmtp(place, task.verb, "--spec", spec, "--task", task.id, "--index", str(index))
            assert done[0] == 0, (task.id, index)
    return run


def outcomes(run: Run) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pointer in sorted(run.pointers(), key=lambda one: one.index):
        found.setdefault(pointer.task, []).append(pointer.outcome)
    return found


@pytest.fixture(scope="module")
def first(place: Path) -> Run:
    return day(place, "first")


def test_everything_runs_once_and_what_is_not_needed_is_skipped(first: Run) -> None:
    found = outcomes(first)
    # After three steps candidate and base may write the same programs, and then their verdicts are a hit.
    assert found.pop("judge")[:2] == ["run"] * 2
    assert found == {
        "plan": ["done"], "pull_data": ["run"], "pull_model": ["run"], "pull_reference": ["skipped"], "reference": ["run"] * 2,
        "reward": ["skipped"], "fit_critic": ["skipped"], "score_shard": ["run"] * 2, "score": ["run"], "train": ["run"], "generate": ["run"] * 4,
        "promote": ["done"], "report": ["done"],
    }  # fmt: skip
    promoted = first.pointer("promote")
    assert promoted is not None and promoted.detail["outcome"] == "refused"  # nothing is solved after three steps
    assert (first.store.backend.read(f"{first.prefix}/report.html") or b"").decode().startswith("<!doctype html>")


def test_a_second_day_computes_nothing(place: Path, first: Run) -> None:
    again = day(place, "second")
    assert Counter(
        outcome
        for name, found in outcomes(again).items()
        if name not in ("plan", "promote", "report")
        for outcome in found
    ) == {"hit": 14, "skipped": 5}
    code, shown = wmtp(place, "show")
    assert code == 0
    assert "Every stage was a hit" in shown


def test_a_changed_weighting_runs_training_and_what_is_below_it_only(place: Path, first: Run) -> None:
    changed = outcomes(day(place, "third", "weighting.temperature=1.0"))
    assert changed["train"] == ["run"]
    assert changed["generate"][2:] == changed["judge"][2:] == ["hit", "hit"]
    assert {name for name, found in changed.items() if "run" in found} <= {"train", "generate", "judge"}


def test_data_of_a_reference_waits_for_the_data_that_it_is_held_against(place: Path) -> None:
    trained = "scoring.reference={kind: trained, data: {kind: generated, num_train: 40, seed: 1}, train: {steps: 2}}"
    changes = ("--set", trained, "--set", "data.source.seed=9")
    code, text = wmtp(place, "plan", "--recipe", str(place / "recipe.yaml"), *changes)
    assert code == 0
    assert "pull_data       run" in text and "pull_reference  waits" in text


def test_uniform_weights_need_neither_reference_nor_scores(place: Path, first: Run) -> None:
    code, text = wmtp(place, "plan", "--recipe", str(place / "recipe.yaml"), "--set", "scoring.scorer=uniform")
    lines = {line.split()[0]: line.split()[1] for line in text.splitlines() if line[:1].isalpha() and ":" not in line}
    assert code == 0
    assert (lines["reference"], lines["score_shard[0]"], lines["score"], lines["train"]) == (
        "skipped",
        "skipped",
        "skipped",
        "run",
    )
    assert lines["generate[0]"] == "waits"
    assert lines["judge[2]"] == "hit"


def test_the_number_of_shards_changes_neither_key_nor_bytes(place: Path, first: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((place / "recipe.yaml").read_text())
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT | {"score": {"num_shards": 3}}))
    environment = load_environment(tmp_path / "environment.yaml")
    spec = first.spec.model_copy(update={"fan_out": {**first.spec.fan_out, "score_shard": 3}})
    other = Run(stage.Store.open(environment.store), environment, first.prefix, spec)
    other.store.create_json(f"{other.prefix}/spec.json", spec.model_dump(mode="json"))
    found: list[Pointer] = []
    for name in ("pull_data", "pull_model", "pull_reference", "reference", "score_shard", "score"):
        found += [
            stage.execute(other, pipeline.TASKS[name], index, tasks=pipeline.TASKS)
            for index in range(spec.fan_out.get(name, 1))
        ]
    before = first.pointer("score")
    assert before is not None
    assert (found[-1].key, found[-1].digest) == (before.key, before.digest)
    assert [one.outcome for one in found if one.task == "score_shard"] == ["run"] * 3


def test_plan_tells_the_minutes_of_earlier_runs_and_why_names_the_setting(place: Path, first: Run) -> None:
    recipe = ("--recipe", str(place / "recipe.yaml"))
    code, text = wmtp(place, "plan", *recipe, "--set", "train.steps=4")
    assert code == 0
    assert "train           run" in text and "min last time" in text and "champion: none yet" in text
    code, changes = wmtp(place, "why", "train", *recipe, "--set", "train.steps=4")
    assert code == 0 and "config.train.steps: 3 → 4" in changes.splitlines()
    assert "waits for train" in wmtp(place, "why", "generate", *recipe, "--set", "train.steps=4")[1]
    assert "nothing changed" in wmtp(place, "why", "pull_data", *recipe)[1]
    assert "not needed" in wmtp(place, "why", "score", *recipe, "--set", "scoring.scorer=uniform")[1]


def test_show_tells_of_an_artifact_and_of_a_run(place: Path, first: Run) -> None:
    trained = first.pointer("train")
    assert trained is not None and trained.prefix is not None
    _, text = wmtp(place, "show", f"{first.store.uri}/{trained.prefix}")
    assert "file    model/config.json" in text and "input   scores: " in text and "metric  steps: 3" in text
    _, text = wmtp(place, "show", f"{first.store.uri}/{first.prefix}/spec.json")
    assert " stages ran in " in text and "refused: version 1" in text


def test_lineage_is_a_tree_in_which_each_artifact_is_told_once(first: Run, place: Path) -> None:
    trained, data, model = (first.pointer(name) for name in ("train", "pull_data", "pull_model"))
    assert trained and data and model and trained.key and data.key and model.key
    code, text = wmtp(place, "show", "--lineage", f"{first.store.uri}/{trained.prefix}")
    lines = text.splitlines()
    assert code == 0
    assert lines[0].startswith(f"train {trained.key[:12]}  ") and " by wmtp_daily/first" in lines[0]
    assert lines[1].startswith(f"├─ data: pull {data.key[:12]}  ") and "; made 20" in lines[1]
    assert lines[2].startswith(f"├─ model: pull {model.key[:12]}  ")
    assert lines[3].startswith("└─ scores: score ")
    assert lines[4] == f"   ├─ data: pull {data.key[:12]}  (told above)"
    assert all(text.count(key) == 1 + text.count(f"{key}  (told above)") for key in (data.key[:12], model.key[:12]))


def test_verify_and_gc_find_nothing_to_do_after_a_day(place: Path, first: Run) -> None:
    code, text = wmtp(place, "verify")
    assert code == 0 and text.endswith(": all as committed\n")
    code, text = wmtp(place, "gc")
    assert code == 0
    assert (
        text
        == "0 prefixes with 0 bytes, 0 unfinished writes and 0 runs in MLflow: a dry run, nothing was removed; --delete removes them\n"
    )


def test_a_stage_that_runs_again_in_the_shadow_gives_the_same_files(place: Path, first: Run) -> None:
    spec = f"{first.store.uri}/{first.prefix}/spec.json"
    for task in ("pull_data", "score", "train"):
        assert wmtp(place, "verify", "--recompute", task, "--spec", spec) == (0, f"{task}: no files differ\n")


def test_verify_ends_with_65_where_something_is_broken(tmp_path: Path) -> None:
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    store = stage.Store.of(load_environment(tmp_path / "environment.yaml"))
    draft = store.begin("make/k1")
    (draft.folder / "a.txt").write_text("alpha")
    store.commit(draft, {})
    (draft.folder / "a.txt").write_text("alpho")
    code, text = wmtp(tmp_path, "verify", "make")
    assert code == 65
    assert text.startswith("make/k1: a.txt was committed with SHA-256 ")
    assert "1 artifacts, 1 files, 5 bytes: 1 broken, quarantined" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "/elsewhere/x"), "is not in the store"),
        (("show", "{store}/train/none"), "is no whole artifact"),
        (("show", "--lineage"), "--lineage is of an artifact"),
        (("verify", "--recompute", "train"), "needs --spec"),
        (("gc", "--grace-days", "0"), "a day or more"),
        (("train", "--spec", "/x/spec.json", "--task", "train"), "must lie in the store of the environment file"),
        (("train", "--spec", "{store}/runs/laptop/d/none/spec.json", "--task", "train"), "Run the task `plan`"),
        (("plan", "--recipe", "{place}/recipe.yaml", "--force", "promote"), "is an action and always runs"),
        (
            ("plan", "--recipe", "{place}/recipe.yaml", "--force", "trian"),
            "There is no task 'trian'. The tasks are plan, pull_data",
        ),
        (("why", "report", "--recipe", "{place}/recipe.yaml"), "is an action: it has no key"),
        (("why", "select", "--recipe", "{place}/recipe.yaml"), "select is no task of a run with this spec"),
    ],
)
def test_a_users_mistake_ends_with_64_and_says_what_to_do(
    place: Path, first: Run, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [one.format(store=first.store.uri, place=place) for one in arguments]
    assert wmtp(place, *filled)[0] == 64
    assert message in capsys.readouterr().err


def test_a_store_without_runs_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    assert wmtp(tmp_path, "show")[0] == 64
    assert "has no run yet" in capsys.readouterr().err
