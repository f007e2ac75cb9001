"""Airflow's pages as a person uses them: the form filled in with a real browser, the run watched to its end, its links followed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from test_ui import free_port

from scripts import browser, screenshots

if TYPE_CHECKING:
    from conftest import Toys


@pytest.mark.slow
def test_a_run_is_triggered_by_hand_watched_to_success_and_leads_to_its_report(toys: Toys, checkout: str) -> None:
    pytest.importorskip("playwright", reason="needs Playwright, which `make setup` installs")
    if browser.find() is None:
        pytest.skip(f"needs one of {', '.join(browser.NAMES)}")
    ports = [free_port(), free_port()]
    airflow = f"http://127.0.0.1:{ports[0]}"
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.ui", f"--airflow-port={ports[0]}", f"--mlflow-port={ports[1]}"],
        cwd=checkout,
        env=toys.variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as ui:
        assert ui.stdout is not None
        assert airflow in [next(ui.stdout) for _ in range(4)][1]
        with browser.chromium() as chromium:
            tab = chromium.new_page()
            tab.set_default_timeout(120_000)
            screenshots.fill(tab, airflow, "wmtp_daily", "by_hand", {"overrides": "train.steps=200"})
            assert "What to learn: a name in configs/recipes" in tab.inner_text("[role=dialog] >> nth=-1")
            screenshots.submit(tab)
            screenshots.wait_for_success(tab, airflow, "wmtp_daily", "by_hand", seconds=600)

            screenshots.open_task(tab, airflow, "wmtp_daily", "by_hand", "report")
            mlflow = tab.get_by_role("link", name="MLflow run").get_attribute("href")
            assert mlflow == f"http://127.0.0.1:{ports[1]}/#/experiments/7/runs/abc"
            answer = tab.goto(str(tab.get_by_role("link", name="Report", exact=True).get_attribute("href")))
            assert answer is not None and answer.text() == "toys"
            assert answer.header_value("content-security-policy").startswith("default-src 'none'")

            spec = json.loads((toys.folder / "store/runs/toys/wmtp_daily/by_hand/train.json").read_text())
            answer = tab.goto(f"{airflow}/wmtp/train/{spec['key']}/manifest.json")
            assert answer is not None and answer.json()["key"] == spec["key"]
            for missing in (f"train/{'0' * 64}/manifest.json", "runs/toys/wmtp_daily/by_hand/spec.json"):
                answer = tab.goto(f"{airflow}/wmtp/{missing}")
                assert answer is not None and answer.status == 404
        ui.send_signal(signal.SIGINT)
        assert ui.wait(200) == 0
