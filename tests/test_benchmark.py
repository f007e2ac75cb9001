"""One model on one benchmark: judged while it writes, and the same artifacts as the daily run's own tasks make."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mlops_tasks import benchmark, logs, stage
from mlops_tasks.__main__ import main
from mlops_tasks.benchmark import INDEX, evaluate, in_words
from mlops_tasks.config.environment import Environment
from mlops_tasks.evaluation.referee import Referee
from mlops_tasks.pipeline import TASKS
from mlops_tasks.stage import Run
from mlops_tasks.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")


@pytest.fixture(autouse=True)
def _handlers_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda **_: None)


STUB = 'def add(a, b):\n    """Add {}."""\n'
RECIPE = """
name: small
data: {{source: {source}}}
model: {{name: m, source: {{kind: random, hidden_size: 32, num_layers: 1, vocab_size: 320}}}}
scoring: {{scorer: uniform}}
train: {{steps: 1}}
evaluation: {{protocol: {protocol}, max_new_tokens: 8, k: [1, 2], num_samples: 2, temperature: 1.0}}
"""


def humaneval(folder: Path) -> Path:
    lines = [
        {"task_id": f"HumanEval/{n}", "prompt": STUB.format(n), "entry_point": "add", "canonical_solution": "    return a + b\n",
         "test": f"def check(f):\n    assert f(1, {n}) == {1 + n}\n"}
        for n in range(4)
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(source="{kind: humaneval, path: data.jsonl}", protocol="humaneval-completion"))
    return recipe


def test_an_evaluation_makes_what_the_tasks_make_and_is_a_hit_afterwards(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = humaneval(tmp_path)
    told: list[str] = []
    really_submit = Referee.submit
    monkeypatch.setattr(Referee, "submit", lambda self, id, text: told.append(id) or really_submit(self, id, text))
    run = evaluate(environment, recipe=recipe)
    assert len(told) == 16, "8 programs, once when they are written and once by the stage"
    [first] = [run.artifact("judge", INDEX)]
    elsewhere = environment.model_copy(update={"store": str(tmp_path / "other")})
    other = Run(Store.of(elsewhere), elsewhere, "runs/laptop/d/r", run.spec)
    for task, index in (("pull_data", 0), ("pull_model", 0), ("generate", INDEX), ("judge", INDEX)):
        stage.execute(other, TASKS[task], index, tasks=TASKS)
    second = other.artifact("judge", INDEX)
    assert first is not None and second is not None
    assert (first.prefix, first.digest) == (second.prefix, second.digest)
    again = evaluate(environment, recipe=recipe)
    assert {pointer.outcome for pointer in again.pointers()} == {"hit"}
    assert len(told) == 24, "and 8 by the other run's stage"


def test_the_lines_of_an_evaluation_hold_its_figures(environment: Environment, tmp_path: Path) -> None:
    run = evaluate(environment, recipe=humaneval(tmp_path))
    lines = "\n".join(in_words(run))
    judged = run.artifact("judge", INDEX)
    assert judged is not None and judged.metrics["bits_per_byte"] > 0
    assert "small: 4 problems, 2 programs each, protocol humaneval-completion" in lines
    assert f"bits per byte         {judged.metrics['bits_per_byte']:.4f}" in lines
    assert "pass@2" in lines and judged.uri in lines


def test_a_generation_that_fails_leaves_no_sandbox_behind(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(attempt: object, on_row: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(benchmark, "generate", broken)
    with pytest.raises(ZeroDivisionError):
        evaluate(environment, recipe=humaneval(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "says"), [("mbpp", None), ("codecontests", "25 problems are unsupported")])
def test_check_data_runs_every_reference(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, says: str | None
) -> None:
    path = (
        request.getfixturevalue("codecontests_file")
        if kind == "codecontests"
        else request.getfixturevalue("mbpp_folder") / "sanitized-mbpp.json"
    )
    environment = tmp_path / "environment.yaml"
    environment.write_text(f"store: {tmp_path / 'store'}\nmlflow_uri: sqlite:///mlflow.db\n")
    assert main(["check-data", str(path), "--kind", kind, "--env", str(environment)]) == 0
    count = 250 if kind == "codecontests" else 427
    out = capsys.readouterr().out
    assert f"{count} of {count} reference solutions pass their tests" in out
    assert says is None or says in out


def test_check_data_takes_the_data_of_a_recipe(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    environment = tmp_path / "environment.yaml"
    environment.write_text(f"store: {tmp_path / 'store'}\nmlflow_uri: sqlite:///mlflow.db\n")
    assert main(["check-data", "--recipe", str(humaneval(tmp_path)), "--env", str(environment)]) == 0
    assert "4 of 4 reference solutions pass" in capsys.readouterr().out
    assert main(["check-data", "--env", str(environment)]) == 64
    assert "is made up and right as it is" in caplog.text
