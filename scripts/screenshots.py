"""The pictures of the docs: `python -m scripts.screenshots` takes the report of the newest run; `make demo` makes one.

With `--airflow URL`, beside `make ui`, it triggers a run in the browser too, watches it to its end and takes Airflow's pages; with
`approval: {kind: person}` in the environment file, and in its MLflow no champion yet, also the form of the approval, which it then signs. With
`--comparison` it takes the page of the newest comparison of algorithms, and nothing else; with `--study` that of the newest study.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_tasks import algorithms, ledger
from mlops_tasks.algorithms.findings import Findings
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment
from mlops_tasks.report import page
from mlops_tasks.report.algorithms import page as algorithms_page
from mlops_tasks.report.study import page as study_page
from mlops_tasks.stage import runs
from scripts import airflow_home, browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

IMAGES = airflow_home.CHECKOUT / "docs" / "images"
SIZES: dict[str, ViewportSize] = {"wide": {"width": 1280, "height": 1000}, "phone": {"width": 360, "height": 740}}
# Anchors, and how much of each is shown; below the graph come the paths of whoever made the pictures.
PARTS = {"weights": 1000, "lineage": 780}
STUDY_PARTS = {"evidence": 900, "settings": 1300, "time": 460}
ALGORITHMS_HEIGHT = 2000


def main() -> int:
    """Write all of them anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder that they go to")
    parser.add_argument("--airflow", help="where `make ui` has Airflow, such as http://127.0.0.1:8080")
    parser.add_argument("--comparison", action="store_true", help="the newest comparison of algorithms alone")
    parser.add_argument("--study", action="store_true", help="the newest study alone")
    options = parser.parse_args()
    options.images.mkdir(parents=True, exist_ok=True)
    environment = load_environment(airflow_home.variables()["WMTP_ENVIRONMENT"])
    if options.comparison:
        return comparison(environment, options.images)
    if options.study:
        return study(environment, options.images)
    run = next(runs(environment), None)
    if run is None:
        print(f"There is no run in {environment.store}. Make one: make demo", file=sys.stderr)
        return 1
    with browser.chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        path.write_text(page(run), encoding="utf-8")
        written = report(chromium, path, options.images)
        if options.airflow:
            written += airflow(
                chromium, options.airflow, options.images, is_asked=environment.approval.kind == "person"
            )
    print(*written, sep="\n")
    return 0


def comparison(environment: Environment, images: Path) -> int:
    """The page of the newest comparison of algorithms, from top to bottom."""
    cells = next(algorithms.planned(environment), None)
    if cells is None:
        print(f"There is no comparison in {environment.store}. Make one: wmtp comparison run FILE", file=sys.stderr)
        return 1
    with browser.chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        path.write_text(algorithms_page(Findings.of(cells)), encoding="utf-8")
        _picture(chromium, path, images / "algorithms.png", size="wide", scheme="light", height=ALGORITHMS_HEIGHT)
    print(images / "algorithms.png")
    return 0


def study(environment: Environment, images: Path) -> int:
    """Some parts of the page of the newest study that is done."""
    run = next((run for run in runs(environment) if run.spec.is_study and run.pointer("conclude")), None)
    if run is None or (selected := run.artifact("select")) is None:
        print(f"There is no study in {environment.store} that is done. Make one: wmtp tune run", file=sys.stderr)
        return 1
    with browser.chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        path.write_text(study_page(selected, cost=ledger.of_run(run, run.pointers()).in_words()), encoding="utf-8")
        for anchor, height in STUDY_PARTS.items():
            picture = images / f"study-{anchor}.png"
            _picture(chromium, path, picture, size="wide", scheme="light", anchor=anchor, height=height)
            print(picture)
    return 0


def report(chromium: Browser, path: Path, images: Path) -> list[Path]:
    """The top of a report at two widths in both schemes, and some parts of it."""
    written = []
    for size in SIZES:
        for scheme in ("light", "dark"):
            written.append(images / f"report-{size}-{scheme}.png")
            _picture(chromium, path, written[-1], size=size, scheme=scheme)
    for part, height in PARTS.items():
        written.append(images / f"report-{part}.png")
        _picture(chromium, path, written[-1], size="wide", scheme="light", anchor=part, height=height)
    return written


def _picture(
    chromium: Browser, path: Path, picture: Path, *, size: str, scheme: Any, anchor: str = "", height: int | None = None
) -> None:
    scale = 2 if size == "phone" else 1
    tab = chromium.new_page(
        viewport={**SIZES[size], "height": height or SIZES[size]["height"]},
        color_scheme=scheme,
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    tab.goto(f"{path.as_uri()}#{anchor}")
    tab.screenshot(path=picture)
    tab.close()


def airflow(chromium: Browser, url: str, images: Path, *, is_asked: bool) -> list[Path]:
    """The trigger form filled in, the run that it starts when it has succeeded, the links of its report, the form of a rollback.

    Args:
        chromium: the browser.
        url: where Airflow is.
        images: folder that they go to.
        is_asked: a person approves of a promotion; its form is taken, too.
    """
    tab = chromium.new_page(viewport={"width": 1280, "height": 1000})
    tab.set_default_timeout(60_000)
    written: list[Path] = []

    def take(name: str) -> None:
        written.append(images / f"airflow-{name}.png")
        tab.screenshot(path=written[-1])

    run = f"pictures_{int(time.time())}"
    fill(tab, url, "wmtp_daily", run, {"recipe": "demo"})
    take("trigger")
    submit(tab)
    if is_asked:
        open_question(tab, url, "wmtp_daily", run, "approve")
        take("approval")
        tab.wait_for_timeout(20_000)  # an answer in the first seconds may be lost (docs/operations.md)
        answer_question(tab, "Approve")
    wait_for_success(tab, url, "wmtp_daily", run)
    take("run")
    open_task(tab, url, "wmtp_daily", run, "report")
    take("links")
    fill(tab, url, "model_rollback", None, {"model": "demo-coder", "reason": "It answers in Latin."})
    take("rollback")
    tab.close()
    return written


def fill(tab: Page, url: str, dag: str, run: str | None, params: Mapping[str, str]) -> None:
    """Open the trigger form of a DAG and fill it in as a person does.

    Args:
        url: where Airflow is.
        run: id of the run to be; None: Airflow chooses one.
        params: texts by the name of the param; others keep what the form says.
    """
    tab.goto(f"{url}/dags/{dag}")
    tab.get_by_role("button", name="Trigger Dag").click()
    if run is not None:
        # Of the two parts of the form one is open at a time.
        tab.get_by_role("button", name="Advanced Options").click()
        tab.fill("input[name=dagRunId]", run)
    if run is not None and params:
        tab.get_by_role("button", name="Run Parameters").click()
    for name, text in params.items():
        tab.fill(f"#element_{name}", text)


def submit(tab: Page) -> None:
    """Send the form off, and wait until Airflow has taken it."""
    tab.get_by_test_id("trigger-dag-submit").click()
    tab.get_by_test_id("trigger-dag-submit").wait_for(state="detached")


def open_question(tab: Page, url: str, dag: str, run: str, task: str, *, seconds: float = 1200) -> None:
    """Open the form of an approval, and wait until its task asks.

    Raises:
        TimeoutError: of Playwright's: it does not ask in time.
    """
    page = f"{url}/dags/{dag}/runs/{run}/tasks/{task}"
    # A form that is opened before there is a question never shows it, and the task's state is kept up to date.
    tab.goto(page)
    tab.get_by_text("Awaiting Input").first.wait_for(timeout=1000 * seconds)
    tab.goto(f"{page}/required_actions")
    tab.get_by_role("button", name="Approve", exact=True).wait_for()


def answer_question(tab: Page, button: str) -> None:
    """Press a button of an approval's form, and wait until Airflow has taken the answer.

    A page that is left at once takes its request along: the answer may never arrive, and the task waits for it until its time is over.

    Raises:
        TimeoutError: of Playwright's: Airflow does not answer in time.
    """
    with tab.expect_response(lambda response: response.request.method == "PATCH" and response.ok):
        tab.get_by_role("button", name=button, exact=True).click()


def wait_for_success(tab: Page, url: str, dag: str, run: str, *, seconds: float = 1200) -> None:
    """Watch the page of a run until it says that the run has succeeded.

    Raises:
        TimeoutError: of Playwright's: the run has failed, or is not done in time.
    """
    tab.goto(f"{url}/dags/{dag}/runs/{run}")
    # The state stands below the name; the tasks have states of their own further down.
    tab.wait_for_function(
        "run => document.body.innerText.includes(`${run}\\nSuccess`)", arg=run, timeout=1000 * seconds
    )


def open_task(tab: Page, url: str, dag: str, run: str, task: str) -> None:
    """Open the details of a task that has ended, and wait for its links."""
    tab.goto(f"{url}/dags/{dag}/runs/{run}/tasks/{task}/details")
    tab.get_by_role("link", name="Report", exact=True).wait_for()


if __name__ == "__main__":
    sys.exit(main())
