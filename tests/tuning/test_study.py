"""Whole studies of a tiny recipe: exactly the trials that were asked for, pruned or killed or not."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from mlops_tasks import pipeline, planning, stage
from mlops_tasks.__main__ import main
from mlops_tasks.config.loading import load_environment
from mlops_tasks.config.space import MedianPruner
from mlops_tasks.errors import DataError, Killed, OutOfMemory, Unavailable, UserError, WmtpError
from mlops_tasks.housekeeping import Collector
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact
from mlops_tasks.tracking import connection
from mlops_tasks.tuning.adoption import adopt
from mlops_tasks.tuning.cell import Cell
from mlops_tasks.tuning.commands import in_words
from mlops_tasks.tuning.overseer import listening
from mlops_tasks.tuning.space import default_point, draw
from mlops_tasks.tuning.study import Study, _carry_out, _TrialRun, search, trial_recipe
from mlops_tasks.tuning.trials import CHANGES, WORKER


def planned(place: Path, name: str, *overrides: str) -> Run:
    environment = load_environment(place / "environment.yaml")
    prefix = Run.prefix_of(environment, "wmtp_tune", name)
    return planning.plan(environment, prefix, recipe=place / "recipe.yaml", overrides=overrides, is_study=True)


def carried_out(run: Run, *, last: str = "conclude") -> dict[str, str]:
    found: dict[str, str] = {}
    for task, index in pipeline.places(run.spec):
        found[f"{task.id}.{index}"] = stage.execute(run, task, index, tasks=pipeline.every()).outcome
        if task.id == last:
            break
    return found


def rows(run: Run) -> list[dict[str, Any]]:
    selected = run.artifact("select")
    assert selected is not None
    return [json.loads(line) for line in selected.path("trials.jsonl").read_text().splitlines()]


def test_a_recipe_that_is_better_beyond_chance_is_what_tuned_stands_for(place: Path) -> None:
    # The recipe hardly learns at all, so nearly any other rate is better.
    run = planned(place, "first", "train.learning_rate=1.0e-4", "train.steps=8", "train.validate_every_steps=4")
    found = carried_out(run)
    assert (found["search.0"], found["select.0"], found["conclude.0"]) == ("done", "run", "done")
    trials, selected, concluded = rows(run), run.artifact("select"), run.pointer("conclude")
    assert selected is not None and concluded is not None
    assert [one["slot"] for one in trials] == [0, 1, 2, 3]
    assert trials[0]["params"]["train.learning_rate"] == 1e-4  # the recipe itself
    for one in trials:
        assert ("weighting.top_share" in one["params"]) == (one["params"]["weighting.kind"] == "select")
    best = min(trials, key=lambda one: one["values"]["validation_loss"])
    assert best["slot"] != 0 and selected.metrics["best_validation_loss"] == best["values"]["validation_loss"]
    assert selected.metrics["interval"]["p_value"] < 0.05 and concluded.detail["outcome"] == "adopted"
    tuned = yaml.safe_load(selected.path("recipe.yaml").read_text())
    assert tuned["train"]["learning_rate"] == best["params"]["train.learning_rate"]
    text = Path(concluded.detail["path"]).read_text()
    assert (
        "<svg" in text
        and "Device-seconds: " in text
        and "the seeds alone are new" in text
        and "no trial was measured by" not in text
    )
    assert len(re.findall('<rect[^>]*class="trial best"', text)) == 1, "who tried the best one, and when"

    again = planned(place, "second", "train.learning_rate=1.0e-4", "train.steps=8", "train.validate_every_steps=4")
    assert {carried_out(again, last="select")[name] for name in ("search.0", "select.0")} == {"skipped", "hit"}
    is_told_of_in_mlflow(run, concluded.detail["mlflow"], trials)
    is_not_moved_back(run, selected)
    is_told_of_on_a_terminal(place, selected.metrics["reason"])
    is_kept_by_gc(run, selected.prefix)
    is_what_a_night_learns(run, tuned, selected.digest)


def is_not_moved_back(run: Run, selected: Artifact) -> None:
    def made(created: str) -> Artifact:
        return replace(selected, manifest={**selected.manifest, "key": "0" * 64, "created": created})

    before = run.store.read_json("tuned/tiny.json")
    assert not adopt(run.store, "tiny", made("2000-01-01T00:00:00+00:00"))
    assert run.store.read_json("tuned/tiny.json") == before
    assert adopt(run.store, "tiny", made("2999-01-01T00:00:00+00:00"))
    assert run.store.read_json("tuned/tiny.json") != before
    assert adopt(run.store, "tiny", selected)  # the newer one is not whole


def is_told_of_in_mlflow(run: Run, ids: dict[str, str], trials: list[dict[str, Any]]) -> None:
    with connection(run.environment) as client:
        below = client.search_runs([ids["experiment_id"]], f"tags.`mlflow.parentRunId` = '{ids['run_id']}'")
        by_slot = {one.data.tags["slot"]: one for one in below}
        assert sorted(by_slot) == ["0", "1", "2", "3"]
        for row in trials:
            told = by_slot[str(row["slot"])]
            assert (told.info.status, told.data.tags["state"]) == ("FINISHED", "complete")
            assert float(told.data.params["train.learning_rate"]) == row["params"]["train.learning_rate"]
            assert told.data.metrics["validation_loss"] == row["values"]["validation_loss"]
            curve = client.get_metric_history(told.info.run_id, "validation_nats")
            assert [[one.step, one.value] for one in curve] == row["curve"] and len(curve) == 2
        files = {one.path for one in client.list_artifacts(ids["run_id"])}
    assert files == {"report.html", "recipe.yaml", "trials.jsonl", "evidence.json"}


def is_told_of_on_a_terminal(place: Path, reason: str) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["tune", "status", "--env", str(place / "environment.yaml")]) == 0
    lines = out.getvalue().splitlines()
    assert lines[0].endswith(": 4 trials, 4 complete")
    assert any(line.startswith("  cost        Device-seconds: ") for line in lines)
    assert "  time left   none" in lines and f"  selected    {reason}" in lines


def is_kept_by_gc(run: Run, prefix: str) -> None:
    years = datetime.now(UTC) + timedelta(days=900)
    gone = {one.prefix for one in Collector(run.environment, num_runs=0, now=years).garbage() if one.manifest}
    assert prefix not in gone and any(one.startswith("train/") for one in gone)


def is_what_a_night_learns(run: Run, tuned: dict[str, Any], digest: str) -> None:
    daily = planning.resolve(run.environment, recipe="tuned:tiny")
    assert daily.tuned is not None and daily.tuned.digest == digest
    assert daily.recipe.model_dump(mode="json") == {**tuned, "tuning": None}
    assert planning.resolve(run.environment, recipe="tuned").tuned == daily.tuned
    with pytest.raises(UserError, match=r"There is no recipe tuned:other in .*; there is tuned:tiny\."):
        planning.resolve(run.environment, recipe="tuned:other")
    night = Run(run.store, run.environment, "runs/laptop/wmtp_daily/night", daily)
    for name in ("pull_data", "pull_model", "score_shard", "score"):
        stage.execute(night, pipeline.TASKS[name], tasks=pipeline.TASKS)
    assert stage.decide(night, pipeline.TASKS["train"], tasks=pipeline.TASKS).outcome == "hit"


def test_with_two_objectives_those_that_none_beats_are_told(place: Path) -> None:
    objectives = "tuning.objectives=[pass_at_1, tokens_per_second]"
    run = planned(place, "two", objectives, "tuning.num_trials=3", "train.steps=2")
    carried_out(run)
    selected = run.artifact("select")
    assert selected is not None
    evidence = json.loads(selected.path("evidence.json").read_text())
    # Nothing is solved after two steps, so that none beats the fastest.
    fastest = max(rows(run), key=lambda one: one["values"]["tokens_per_second"])
    assert evidence["front"] == [fastest["slot"]] == [evidence["best_slot"]]
    judged = [run.store.find(f"judge/{key}") for key in run.store.children("judge")]
    assert {one.metrics["num_problems"] for one in judged if one} == {3}
    # Of the gate set of six, those that measured trials decide about no model of theirs.
    assert adopt(run.store, "tiny", selected)
    night = planning.resolve(run.environment, recipe="tuned:tiny").recipe.evaluation.gate
    assert (night.skip, night.limit) == (3, 3)
    assert "none beats stand out" in (run.store.backend.read(f"{run.prefix}/report.html") or b"").decode()


def test_a_database_that_is_away_is_said_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = yaml.safe_load((place / "environment.yaml").read_text())
    (place / "environment.yaml").write_text(yaml.safe_dump(given | {"tune": {"storage": "env:STUDIES"}}))
    study = Study.of(planned(place, "away"))
    with pytest.raises(UserError, match="the environment variable STUDIES is empty"):
        study.trials()
    monkeypatch.setenv("STUDIES", "postgresql+psycopg2://me:secret@127.0.0.1:1/studies")
    with pytest.raises(Unavailable, match=r"The database of the study .* Start it, and run this task again") as caught:
        study.trials()
    assert "secret" not in str(caught.value)


def test_a_pruned_training_leaves_no_artifact_and_counts(place: Path) -> None:
    pruner = "tuning.pruner={kind: median, num_startup_trials: 0}"
    run = planned(place, "pruned", "tuning.num_trials=6", pruner, "train.steps=6")
    carried_out(run, last="search")
    study = Study.of(run)
    slots = study.slots()
    assert sorted(slots) == list(range(6))
    pruned = [trial for trial in slots.values() if trial.state.name == "PRUNED"]
    complete = [trial for trial in slots.values() if trial.state.name == "COMPLETE"]
    assert pruned and len(pruned) + len(complete) == 6
    for trial in pruned:
        assert trial.user_attrs["why"].startswith("pruned: Ended at step")
        assert trial.user_attrs["steps"] < trial.user_attrs["num_steps"] == 6
        assert not run.store.read_json(f"{trial.user_attrs['cell']}/train.json")
    trained = [key for key in run.store.children("train") if run.store.find(f"train/{key}")]
    assert len(trained) == len({json.dumps(trial.user_attrs[CHANGES]) for trial in complete})
    assert not [key for key in run.store.children("train") if run.store.children(f"train/{key}/checkpoints")]


def worker(place: Path, run: Run, index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlops_tasks", "search", f"--env={place / 'environment.yaml'}", "--task=search"]
    command += [f"--spec={run.store.uri}/{run.prefix}/spec.json", f"--index={index}"]
    with (place / f"worker{index}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_trial_costs_no_trial(
    place: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIES", database)
    tune = {"storage": "env:STUDIES", "num_workers": 2, "heartbeat_seconds": 1, "grace_seconds": 15}
    given = yaml.safe_load((place / "environment.yaml").read_text())
    (place / "environment.yaml").write_text(yaml.safe_dump(given | {"tune": tune}))
    run = planned(place, "killed", "tuning.num_trials=3", "train.steps=24")  # long enough to be killed in
    stage.execute(run, pipeline.TASKS["pull_data"], tasks=pipeline.TASKS)
    study = Study.of(run)
    doomed = worker(place, run, 0)
    with study.alone():
        study.slots()  # the tables are there now, whoever has made them
    wait_until(lambda: any(str(doomed.pid) in trial.user_attrs.get(WORKER, "") for trial in study.trials()))
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    others = [worker(place, run, index) for index in (0, 1)]
    assert [one.wait(timeout=600) for one in others] == [0, 0], (place / "worker1.log").read_text()
    trials = study.trials()
    assert sorted(slot for slot, trial in study.slots().items() if trial.state.name == "COMPLETE") == [0, 1, 2]
    assert [trial.state.name for trial in trials].count("FAIL") == len(trials) - 3 == 1
    (failed,) = (trial for trial in trials if trial.state.name == "FAIL")
    assert failed.user_attrs["slot"] == 0
    assert study.slots()[0].user_attrs[CHANGES] == default_point(study.recipe)


def wait_until(is_so: Any, *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def test_every_setting_of_a_tuning_is_in_the_key_of_its_study(place: Path) -> None:
    run = planned(place, "keys")
    tuning = run.spec.recipe.tuning
    assert tuning is not None
    changes: list[dict[str, Any]] = [
        {"num_trials": 5}, {"num_problems": 4}, {"objectives": ("pass_at_1",)}, {"repeats": 3}, {"confidence": 0.8},
        {"sampler": tuning.sampler.model_copy(update={"seed": 1})}, {"pruner": MedianPruner(kind="median")},
        {"space": dict(list(tuning.space.items())[:1])},
    ]  # fmt: skip
    assert {*type(tuning).model_fields} == {name for change in changes for name in change}
    keys = {Study.of(run).key}
    for change in changes:
        recipe = run.spec.recipe.model_copy(update={"tuning": tuning.model_copy(update=change)})
        keys.add(Study.of(replace(run, spec=run.spec.model_copy(update={"recipe": recipe}))).key)
    assert len(keys) == len(changes) + 1


def lost(study: Study, trial: Any) -> None:
    """What another worker makes of one that gives no sign of life any more."""
    with study.alone():
        study.database.tell(trial.number, state=TrialState.FAIL)


def test_parameters_that_take_three_workers_with_them_end_their_slot(place: Path) -> None:
    study = Study.of(planned(place, "deadly", "tuning.num_trials=2"))
    first = study.next_trial()
    assert first is not None
    draw(first, study.recipe)
    study.database.tell(first.number, [1.0])
    for _ in range(3):
        trial = study.next_trial()
        assert trial is not None and trial.user_attrs["slot"] == 1
        trial.set_user_attr(CHANGES, draw(trial, study.recipe))
        lost(study, trial)
    assert study.next_trial() is None
    ended = study.slots()[1]
    assert (ended.state.name, ended.user_attrs["why"]) == (
        "PRUNED",
        "given up: 3 workers were lost with these parameters",
    )
    assert ended.params == trial.params and len(study.trials()) == 5


def test_a_trial_that_waits_for_a_slot_that_is_done_is_begun_by_nobody(place: Path) -> None:
    study = Study.of(planned(place, "twice", "tuning.num_trials=2"))
    first = study.next_trial()
    assert first is not None
    draw(first, study.recipe)
    study.database.tell(first.number, [1.0])
    study.database.enqueue_trial({}, user_attrs={"slot": 0})
    other = study.next_trial()
    assert other is not None and other.user_attrs["slot"] == 1
    assert study.slots()[0].state.name == "COMPLETE"


def test_a_worker_that_was_taken_for_dead_goes_on_with_another_trial(place: Path) -> None:
    study = Study.of(planned(place, "slow", "tuning.num_trials=2"))
    for task, index in pipeline.places(study.run.spec):
        if task.id == "search":
            break
        stage.execute(study.run, task, index, tasks=pipeline.every())
    trial = study.next_trial()
    assert trial is not None
    lost(study, trial)
    _carry_out(study, trial)
    assert study.slots()[0].state.name == "FAIL"
    assert search(study.run) == {"trials": 2}
    assert all(one.state.name == "COMPLETE" for one in study.slots().values())


def test_a_training_goes_on_that_nobody_waits_for_any_more(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = Study.of(planned(place, "judged", "tuning.num_trials=2"))
    trial = study.next_trial()
    assert trial is not None
    attempt = _TrialRun(study, trial)
    assert attempt._judge(1, 4, 2.0)
    lost(study, trial)
    with listening(attempt._judge) as line:
        assert line.goes_on(2, 4, 1.0)
    assert "no sign of life of this trial for tune.grace_seconds" in caplog.text


def test_only_a_fault_of_its_parameters_ends_a_slot(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = "tuning.space={train.num_heads: {kind: choice, choices: [1, 2]}, train.head_warmup_steps: {kind: choice, choices: [0, 2]}}"
    run = planned(place, "faults", "tuning.num_trials=5", space, "train.head_warmup_steps=0", "tuning.sampler.seed=1")
    carried_out(run, last="search")
    study = Study.of(run)
    unfit = [trial for trial in study.slots().values() if trial.state.name == "PRUNED"]
    assert unfit, "no draw was of one head with a warm-up of the others"
    for trial in unfit:
        assert trial.user_attrs[CHANGES] == {"train.num_heads": 1, "train.head_warmup_steps": 2}
        assert trial.user_attrs["why"].startswith("Unfit: train.head_warmup_steps is 2")

    def require_locked(packages: Any) -> None:
        raise UserError("torch 1.0 runs here, but the lock says 2.0.")

    other = planned(place, "machine", "tuning.num_trials=5", space, "train.head_warmup_steps=0", "train.steps=3")
    for task, index in pipeline.places(other.spec):
        if task.id == "search":
            break
        stage.execute(other, task, index, tasks=pipeline.every())
    monkeypatch.setattr("mlops_tasks.tuning.cell.require_locked", require_locked)
    for _ in range(2):
        with pytest.raises(UserError, match=r"torch 1\.0 runs here"):
            search(other)
    ended = [one for one in Study.of(other).trials() if one.state.is_finished()]
    assert [(one.user_attrs["slot"], one.state.name) for one in ended] == [(0, "FAIL"), (1, "FAIL")]
    assert {one.user_attrs["why"] for one in ended} == {"UserError: torch 1.0 runs here, but the lock says 2.0."}


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have every trial from now on end so."""

    def measure(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(Cell, "measure", measure)


@pytest.mark.parametrize("kind", [OutOfMemory, Killed])
def test_too_little_memory_ends_a_slot_wherever_that_was_but_not_the_recipes_own(
    kind: type[WmtpError], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.of(planned(place, "small", "tuning.num_trials=2"))
    fails(monkeypatch, kind("pod x was OOMKilled"))
    first = study.next_trial()
    assert first is not None
    with pytest.raises(kind, match="pod x was OOMKilled"):
        _carry_out(study, first)
    second = study.next_trial()
    assert second is not None
    _carry_out(study, second)
    assert {slot: trial.state.name for slot, trial in study.slots().items()} == {0: "WAITING", 1: "PRUNED"}
    assert study.slots()[1].user_attrs["why"] == f"{kind.__name__}: pod x was OOMKilled"


def test_a_bug_that_the_same_parameters_find_three_times_ends_the_worker_for_good(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.of(planned(place, "bug", "tuning.num_trials=2"))
    fails(monkeypatch, RuntimeError("shapes differ"))
    ended = []
    for _ in range(5):  # a slot after the other
        trial = study.next_trial()
        assert trial is not None
        with pytest.raises((RuntimeError, DataError)) as caught:
            _carry_out(study, trial)
        ended.append((trial.user_attrs["slot"], type(caught.value).__name__))
    assert ended == [(slot, "RuntimeError") for slot in (0, 1, 0, 1)] + [(0, "DataError")]
    assert re.fullmatch(
        r"Slot 0 of tiny-\w+ has failed 3 times with \{.*'train\.num_heads': 2.*\}, the last time: RuntimeError: shapes differ\. Mend that, "
        r"or take these values out of tuning\.space, and clear the task: the study goes on\.",
        str(caught.value),
    )

    fails(monkeypatch, Unavailable("the store does not answer"))
    for _ in range(6):
        trial = study.next_trial()
        assert trial is not None
        with pytest.raises(Unavailable):
            _carry_out(study, trial)


def test_select_without_all_trials_says_what_to_clear(place: Path) -> None:
    run = planned(place, "half", "tuning.num_trials=2")
    for task, index in pipeline.places(run.spec):
        if task.id == "search":
            break
        stage.execute(run, task, index, tasks=pipeline.every())
    with pytest.raises(UserError, match=r"2 of the 2 trials of tiny-\w+ are not done: 0, 1\. Clear the task `search`"):
        stage.execute(run, pipeline.STUDY["select"], tasks=pipeline.every())


@pytest.mark.parametrize(
    "address",
    ["postgresql+psycopg2://me:s3cret@host:port/db", "me:s3cret@host/db", "postgresql://me:s3@cret@host/db", "mysql://me:s3cret@host/db"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_its_password(
    place: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    given = yaml.safe_load((place / "environment.yaml").read_text())
    (place / "environment.yaml").write_text(yaml.safe_dump(given | {"tune": {"storage": "env:STUDIES"}}))
    monkeypatch.setenv("STUDIES", address)
    with pytest.raises(
        UserError,
        match=r"tune\.storage is env:STUDIES, but what that environment variable holds is no address of a PostgreSQL",
    ) as caught:
        Study.of(planned(place, "malformed")).trials()
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3" not in shown and "cret@" not in shown


def test_the_status_of_a_study_is_of_the_one_that_was_begun_and_makes_none(place: Path) -> None:
    run = planned(place, "status", "tuning.num_trials=2")
    assert list(in_words(run)) == ["wmtp_tune/status: not begun"]
    assert not (place / "optuna.db").exists()
    run.write("study", b"0123456789abcdef0123")
    assert next(iter(in_words(run))) == "tiny-0123456789abcdef: 2 trials, not begun"
    assert not Study(run, "0123456789abcdef0123").is_begun()


def test_too_few_problems_are_noticed_before_the_first_trial(place: Path) -> None:
    run = planned(place, "few", "tuning.objectives=[pass_at_1]")
    stage.execute(run, pipeline.TASKS["pull_data"], tasks=pipeline.TASKS)
    # Of data that are not made here, `plan` does not know how many there are.
    tuning = run.spec.recipe.tuning
    assert tuning is not None
    recipe = run.spec.recipe.model_copy(update={"tuning": tuning.model_copy(update={"num_problems": 8})})
    with pytest.raises(UserError, match=r"num_problems is 8, but .* has 8 problems of evaluation\.gate"):
        search(replace(run, spec=run.spec.model_copy(update={"recipe": recipe})))


def test_a_hit_tells_the_pruner_its_curve(place: Path) -> None:
    run = planned(place, "replayed")
    cell = Cell.below(run, "x", trial_recipe(run.spec.recipe, {}, "the test"))
    heard: list[tuple[int, int, float]] = []

    def judgement(step: int, num_steps: int, nats: float) -> bool:
        heard.append((step, num_steps, nats))
        return step != 4 or len(heard) < 5

    for _ in range(2):
        with listening(judgement) as line:
            cell.train(line)
    assert [one[:2] for one in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2
    assert heard[:4] == heard[4:]


def test_packages_of_a_method_that_trials_choose_are_in_the_key_of_the_study(place: Path) -> None:
    def packages(*overrides: str) -> set[str]:
        return {
            *stage.decide(
                planned(place, str(overrides), *overrides), pipeline.STUDY["select"], tasks=pipeline.every()
            ).components["packages"]
        }

    assert not {"peft", "bitsandbytes"} & packages()
    assert packages("train.method.kind=lora") == packages() | {"peft"}
    space = "tuning.space={train.method.kind: {kind: choice, choices: [full, lora, qlora]}}"
    assert packages(space) == packages() | {"peft", "bitsandbytes"}
