"""What Airflow is told of a stage's process, and that nothing of it is ever left. The processes are real."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from airflow.sdk import RetryAction
from wmtp import params
from wmtp.local import LocalPlan, LocalStage
from wmtp.process import Story
from wmtp.task import RETRY_POLICY, LongPolicy
from wmtp.trigger import CHECKOUT, Trigger

from mlops_tasks import errors, pipeline
from mlops_tasks.__main__ import _parser
from mlops_tasks.config.loading import load_environment, load_recipe
from mlops_tasks.errors import BY_EXIT_CODE, DataError, Interrupted, Killed, Pruned, Unavailable, UserError, WmtpError
from mlops_tasks.stage import Decision, Run, Spec
from mlops_tasks.store import Store

if TYPE_CHECKING:
    from conftest import Toys

GUARD = Path(sys.modules["wmtp"].__file__).with_name("guard.py")


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """What Airflow was told of each task, and the log."""
    output, _ = process.communicate(timeout=300)
    lines = output.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"task"')], output


def test_a_task_returns_a_reference_and_links_to_it_and_a_hit_or_a_skipped_one_starts_no_process(toys: Toys) -> None:
    told, log = ended(toys.start("pull_data", "score", "train", "train", "report"))

    assert [one["told"]["state"] for one in told] == ["success", "skipped", "success", "success", "success"], log
    references = [one["xcoms"]["return_value"] for one in told if "return_value" in one["xcoms"]]
    assert [reference["cache"] for reference in references] == ["run", "run", "hit", "done"]
    assert references[1] | {"cache": "hit"} == references[2]
    assert all(set(reference) == {"stage", "key", "uri", "cache"} for reference in references)
    assert told[-1]["heavy"] == []
    processes = re.findall(r"(\S+): starts", log)
    assert processes == ["pull_data[0]", "train[0]", "report[0]"]
    assert "train works" in log
    assert json.loads(next(toys.folder.rglob("score.json")).read_text())["outcome"] == "skipped"
    links = [{name: url for name, url in one["xcoms"].items() if name.startswith("_link")} for one in told]
    manifest = f"/wmtp/pull_data/{references[0]['key']}/manifest.json"
    assert links[0]["_link_ManifestLink"].endswith(manifest)
    assert set(links[1].values()) == {""}
    # The run is called "a run": quoted in the store, and once more in an address.
    assert links[-1]["_link_ReportLink"].endswith("/wmtp/runs/toys/wmtp_daily/a%2520run/report.html")
    assert links[2]["_link_ReportLink"].endswith("/wmtp/runs/toys/wmtp_daily/a%2520run/report.html#training")
    assert links[-1]["_link_MlflowLink"] == "http://mlflow.test/#/experiments/7/runs/abc"


def test_the_exit_code_decides_about_the_retry_and_the_sentence_is_kept(toys: Toys) -> None:
    toys.tell("pull_data.fails", "64 75 85 1 -9")

    told, log = ended(toys.start(*["pull_data"] * 5))

    states = [(one["told"]["state"], one["told"].get("retry_delay_seconds")) for one in told]
    later, at_once, as_the_dag_says = 60, 1, None
    assert states == [
        ("failed", None),
        ("up_for_retry", later),
        ("up_for_retry", at_once),
        ("up_for_retry", as_the_dag_says),
        ("up_for_retry", as_the_dag_says),
    ], log
    said = [one["error"] for one in told]
    for code, text in zip((64, 75, 85), said, strict=False):
        sentence = r"pull_data does not fit:\n  it is told to fail"
        assert text == f"{BY_EXIT_CODE[code].__name__}('pull_data[0] ended with {code}: {sentence}')"
    assert "ended with 1: ValueError: pull_data has a bug" in said[3]
    assert "ended with 137: It was killed by SIGKILL. Often that is a lack of memory." in said[4]


def test_a_trigger_with_an_unknown_key_fails_at_once(toys: Toys) -> None:
    (told,), log = ended(toys.start("plan", conf={"recipe": "demo", "recipes": ["x"]}))

    assert told["told"]["state"] == "failed", log
    assert "recipes is ['x']" in told["error"] and "It may say recipe, overrides, force" in told["error"]


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGINT, "failed"),
        (signal.SIGTERM, "up_for_retry"),
        (signal.SIGALRM, "up_for_retry"),  # what `execution_timeout` is to Airflow
        (signal.SIGKILL, None),
    ],
)
def test_nothing_is_left_of_a_task_that_is_ended_by(number: signal.Signals, state: str | None, toys: Toys) -> None:
    toys.tell("pull_data.hangs")
    process = toys.start("pull_data", "report")
    toys.wait_until((toys.folder / "hanging").exists)
    # The guard, the stage, its child, and two in a session of their own.
    toys.wait_until(lambda: len(toys.processes()) == 5)

    process.send_signal(number)
    told, log = ended(process)

    toys.wait_until(lambda: not toys.processes())
    assert [one["told"]["state"] for one in told[:1]] == ([state] if state else []), log
    if number in (signal.SIGINT, signal.SIGTERM):
        assert "asked to stop" in told[1]["error"], "after a signal the same process must not go on with the next task"
    if number == signal.SIGALRM:
        assert told[1]["told"]["state"] == "success", "after a time-out it goes on"


def guarded(*command: str, grace_seconds: float = 20) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), str(grace_seconds), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_command_has_the_grace_to_end_in_order_when_the_pipe_closes() -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: (time.sleep(1), sys.exit(85)))\nprint('ready', flush=True)\ntime.sleep(60)"
    with guarded(sys.executable, "-c", code) as guard:
        assert guard.stdout is not None and guard.stdin is not None
        assert guard.stdout.readline() == "ready\n"

        guard.stdin.close()

        assert guard.wait(60) == 85


def test_what_a_command_leaves_behind_ends_with_it() -> None:
    code = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)\nsys.exit(3)"

    with guarded(sys.executable, "-c", code) as guard:
        assert guard.stdout is not None
        left = int(guard.stdout.read())

        assert guard.wait(60) == 3
    assert not psutil.pid_exists(left)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["10:00:00 ERROR   a.b: one", "  two", "10:00:01 INFO    a.b: bye"], "one\n  two"),
        (["10:00:00 ERROR   a.b: one", "10:00:01 ERROR   a.b: two"], "two"),
        (
            ["10:00:00 ERROR   a.b: one", "Traceback (most recent call last):", "  File", "ValueError: x"],
            "ValueError: x",
        ),
        (["Traceback (most recent call last):", "ValueError: x", "10:00:00 ERROR   a.b: one"], "one"),
        (["no space left on device", ""], "no space left on device"),
        ([], ""),
    ],
)
def test_the_last_error_is_found(lines: list[str], sentence: str) -> None:
    story = Story()
    for line in lines:
        story.hear(line)
    assert story.last_error == sentence


def test_a_line_keeps_its_level_and_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Story().hear("10:00:00 WARNING mlops_tasks.training: 50% of step 3")
    assert caplog.record_tuples == [("mlops_tasks.training", logging.WARNING, "50% of step 3")]


def test_every_error_class_has_its_rule() -> None:
    def decision(error: BaseException) -> tuple[RetryAction, timedelta | None]:
        found = RETRY_POLICY.evaluate(error, 1, 2)
        return found.action, found.retry_delay

    assert decision(UserError()) == decision(DataError()) == decision(Pruned()) == (RetryAction.FAIL, None)
    assert decision(Unavailable()) == (RetryAction.RETRY, timedelta(minutes=1))
    assert decision(Interrupted()) == (RetryAction.RETRY, timedelta(seconds=1))
    assert decision(KeyboardInterrupt()) == (RetryAction.FAIL, None)
    assert decision(WmtpError()) == decision(ValueError()) == (RetryAction.DEFAULT, None)
    assert set(errors.BY_EXIT_CODE.values()) == {UserError, DataError, Unavailable, Interrupted, Pruned}


def test_what_may_come_again_each_time_ends_a_task_with_many_tries_soon() -> None:
    def tries(policy: LongPolicy, error: BaseException, *, cleared_at: int = 0) -> int:
        """Of fifty, how many it has when all end so."""
        most = cleared_at + 50
        ends = [policy.evaluate(error, cleared_at + number, most).action is RetryAction.FAIL for number in range(1, 51)]
        return ends.index(True) + 1 if True in ends else 50

    for error in (WmtpError(), ValueError(), Killed()):
        assert tries(LongPolicy(), error) == tries(LongPolicy(), error, cleared_at=7) == 5
    assert tries(LongPolicy(survives_kills=True), WmtpError()) == 5
    assert tries(LongPolicy(survives_kills=True), Killed()) == 50
    assert tries(LongPolicy(), Interrupted()) == tries(LongPolicy(), Unavailable()) == 50
    assert tries(LongPolicy(), UserError()) == tries(LongPolicy(), DataError()) == 1
    told = LongPolicy().evaluate(ValueError(), 7, 50).reason or ""
    assert told.startswith(
        "ValueError may come again each time, and this was try 7: from try 5 on it is final. Mend what"
    )


def test_the_policy_survives_the_way_to_the_scheduler() -> None:
    again = type(RETRY_POLICY).deserialize(RETRY_POLICY.serialize())
    assert again.evaluate(DataError(), 1, 2).action is RetryAction.FAIL


@pytest.mark.parametrize("task", pipeline.TASKS.values(), ids=lambda task: task.id)
def test_the_command_of_a_task_is_one_that_the_program_takes(task: Any, tmp_path: Path) -> None:
    environment = load_environment(CHECKOUT / "configs/environments/laptop.yaml")
    spec = Spec(recipe=load_recipe(Trigger(recipe="demo").recipe_file), pins={}, champion=None, created="")
    run = Run(Store.open(str(tmp_path)), environment, "runs/a/b/c", spec)
    operator = LocalStage(task_id=task.id, environment_file="laptop.yaml", index=1)

    arguments = operator.command(run, task, Decision("run", {"stage": "train"}))
    options = vars(_parser().parse_args(arguments))

    assert (options["task"], options["index"], options["env"]) == (task.id, 1, "laptop.yaml")
    assert options["spec"] == f"{tmp_path}/runs/a/b/c/spec.json"
    assert options["expect_key"] == Decision("run", {"stage": "train"}).key


def test_the_command_of_plan_is_one_that_the_program_takes() -> None:
    trigger = Trigger(recipe="demo", overrides=("train.steps=3", "-x=y"), force=("train", "judge"))
    operator = LocalPlan(task_id="plan", environment_file="laptop.yaml")

    options = vars(_parser().parse_args(operator.plan_command(trigger, "store/runs/a/b/c/spec.json")))

    assert (options["overrides"], options["force"]) == (["train.steps=3", "-x=y"], ["train", "judge"])
    assert options["recipe"] == str(CHECKOUT / "configs/recipes/demo.yaml")
    assert (options["spec"], options["env"]) == ("store/runs/a/b/c/spec.json", "laptop.yaml")


def test_a_recipe_is_a_name_or_a_path(tmp_path: Path) -> None:
    assert Trigger(recipe="mine").recipe_file == CHECKOUT / "configs/recipes/mine.yaml"
    assert Trigger(recipe="mine.yaml").recipe_file == CHECKOUT / "mine.yaml"
    assert Trigger(recipe="some/mine").recipe_file == CHECKOUT / "some/mine"
    assert Trigger(recipe=f"{tmp_path}/mine.yaml").recipe_file == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overrides": "train.steps=3"}, r"overrides is 'train.steps=3': Input should be a valid tuple"),
        ({"recipe": 3}, r"recipe is 3: .*It may say recipe, overrides, force"),
        ({"Recipe": "demo"}, r"Recipe is 'demo': Extra inputs"),
    ],
)
def test_a_trigger_that_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trigger.of(given)


def test_a_scheduled_run_takes_the_recipe_of_the_environment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "environment.yaml"
    file.write_text(json.dumps({"store": "store", "mlflow_uri": "sqlite:///mlflow.db", "scheduled_recipe": "nightly"}))
    monkeypatch.setenv("WMTP_ENVIRONMENT", str(file))
    assert params()["recipe"].resolve() == "nightly"


def test_the_form_is_typed_described_and_valid() -> None:
    form = params()
    assert {name: param.resolve() for name, param in form.items()} == {"recipe": "demo", "overrides": [], "force": []}
    assert [param.schema["type"] for param in form.values()] == ["string", "array", "array"]
    assert all(param.description for param in form.values())
    assert {"demo", "mbpp_smollm2"} <= set(form["recipe"].schema["examples"])
    assert "train" in form["force"].schema["examples"] and "promote" not in form["force"].schema["examples"]
