"""Airflow's pages as a person uses them, in a real browser: forms are filled in, runs watched to their end, links followed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from mlflow_server import free_port
from nights import STRONG, WEAK, Night
from test_ui import is_known, request

from mlops_tasks.config.loading import load_environment
from scripts import browser, screenshots

if TYPE_CHECKING:
    from conftest import Toys
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pages:
    """Where they are, and a tab for them."""

    tab: Page
    airflow: str
    mlflow: str
    toys: Toys

    def task(self, dag: str, run: str, task: str) -> dict[str, Any]:
        """What Airflow says of a task."""
        answer = self.tab.request.get(f"{self.airflow}/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}")
        found: dict[str, Any] = answer.json()
        return found

    @property
    def log(self) -> str:
        return (self.toys.home / "airflow.log").read_text()

    def wait_for_its_end(self, dag: str, run: str, task: str) -> None:
        """Until the scheduler has heard that the process of a task that asks has ended.

        Where it hears of that after the answer, Airflow 3.3 takes the task for a failed one, forgets the answer and asks anew.
        """
        said = f"TaskInstance Finished: dag_id={dag}, task_id={task}, run_id={run},"
        self.toys.wait_until(lambda: said in self.log)


@pytest.fixture(scope="module")
def pages(shared_toys: Toys, checkout: str) -> Iterator[Pages]:
    """An Airflow with two toy pipelines, where two nights have come to their approval."""
    pytest.importorskip("playwright", reason="needs Playwright, which `make setup` installs")
    if browser.find() is None:
        pytest.skip(f"needs one of {', '.join(browser.NAMES)}")
    tree = json.loads(shared_toys.environment_file.read_text()) | {"approval": {"kind": "person", "hours": 1}}
    shared_toys.environment_file.write_text(json.dumps(tree))
    for run in ("yes", "no"):
        night = Night(load_environment(shared_toys.environment_file), name=run, dag="approval", key=run)
        night.run(STRONG, WEAK)
    airflow, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    ports = [f"--{name}-port={uri.rpartition(':')[2]}" for name, uri in (("airflow", airflow), ("mlflow", mlflow))]
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.ui", *ports],
        cwd=checkout,
        env={**shared_toys.variables, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as ui:
        assert ui.stdout is not None
        assert airflow in [next(ui.stdout) for _ in range(4)][1]
        token = request(f"{airflow}/auth/token")["access_token"]
        for dag in ("wmtp_daily", "approval"):
            shared_toys.wait_until(partial(is_known, airflow, token, dag))
        with browser.chromium() as chromium:
            tab = chromium.new_page(viewport={"width": 1280, "height": 1000})
            tab.set_default_timeout(300_000)
            yield Pages(tab, airflow, mlflow, shared_toys)
        ui.send_signal(signal.SIGINT)
        assert ui.wait(600) == 0


@pytest.fixture(autouse=True)
def last_words(pages: Pages) -> Iterator[None]:
    """What the page and Airflow's log said at the end, which pytest shows of a test that has failed."""
    yield
    print(pages.tab.url, *pages.tab.locator("body").all_inner_texts(), *pages.log.splitlines()[-60:], sep="\n")


def test_a_run_is_triggered_by_hand_watched_to_success_and_leads_to_its_report(pages: Pages) -> None:
    tab, airflow = pages.tab, pages.airflow
    screenshots.fill(tab, airflow, "wmtp_daily", "by_hand", {"overrides": "train.steps=200"})
    assert "What to learn: a name in configs/recipes" in tab.inner_text("[role=dialog] >> nth=-1")
    screenshots.submit(tab)
    screenshots.wait_for_success(tab, airflow, "wmtp_daily", "by_hand", seconds=900)

    screenshots.open_task(tab, airflow, "wmtp_daily", "by_hand", "report")
    mlflow = tab.get_by_role("link", name="MLflow run").get_attribute("href")
    assert mlflow == f"{pages.mlflow}/#/experiments/7/runs/abc"
    answer = tab.goto(str(tab.get_by_role("link", name="Report", exact=True).get_attribute("href")))
    assert answer is not None and answer.text() == "toys"
    policy = answer.header_value("content-security-policy")
    assert policy is not None and policy.startswith("default-src 'none'")

    spec = json.loads((pages.toys.folder / "store/runs/toys/wmtp_daily/by_hand/train.json").read_text())
    answer = tab.goto(f"{airflow}/wmtp/train/{spec['key']}/manifest.json")
    assert answer is not None and answer.json()["key"] == spec["key"]
    for missing in (f"train/{'0' * 64}/manifest.json", "runs/toys/wmtp_daily/by_hand/spec.json"):
        answer = tab.goto(f"{airflow}/wmtp/{missing}")
        assert answer is not None and answer.status == 404


@pytest.mark.parametrize(("run", "answer", "promotion"), [("yes", "Approve", "success"), ("no", "Reject", "skipped")])
def test_a_person_reads_the_card_and_decides_whether_the_candidate_is_promoted(
    pages: Pages, run: str, answer: str, promotion: str
) -> None:
    tab, airflow = pages.tab, pages.airflow
    screenshots.fill(tab, airflow, "approval", run, {})
    screenshots.submit(tab)

    screenshots.open_question(tab, airflow, "approval", run, "approve", seconds=900)

    text = tab.inner_text("body")
    assert f"Shall the candidate of approval/{run} be the champion of coder?" in text
    assert "better holds: pass@1 is 75.0% against 25.0% of the base model on 40 problems" in text
    cells = tab.get_by_role("row", name="gate this model").get_by_role("cell").all_inner_texts()
    assert cells[:5] == ["gate", "this model", "40", "0.750", "0.598 to 0.858"]
    pages.wait_for_its_end("approval", run, "approve")
    screenshots.answer_question(tab, answer)
    screenshots.wait_for_success(tab, airflow, "approval", run, seconds=900)
    states = {task: pages.task("approval", run, task)["state"] for task in ("approve", "promote", "report")}
    assert states == {"approve": "success", "promote": promotion, "report": "success"}
