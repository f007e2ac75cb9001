"""Ranks: real processes that are stopped, killed and lost. The cases themselves are in `rank_cases`."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_tasks import distributed
from mlops_tasks.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches processes in /proc")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("rank_cases.py"))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["stderr"] = done.stderr
    return found


@pytest.mark.parametrize("case", ["facts", "facts of spawned ranks"])
def test_ranks_know_one_another_and_reduce(outcomes: dict[str, Any], case: str) -> None:
    assert outcomes[case]["result"] == {
        "num_ranks": 2,
        "sum": [2.0, 1.0],
        "broadcast": "from 0",
        "gathered": ["rank 0", "rank 1"],
        "num_threads": 1,
    }


def test_ranks_of_two_pods_know_one_another_and_the_first_pod_has_rank_0(outcomes: dict[str, Any]) -> None:
    told = outcomes["facts in pod 0"]["result"]
    assert (told["num_ranks"], told["sum"], told["gathered"]) == (2, [2.0, 1.0], ["rank 0", "rank 1"])
    assert "error" not in outcomes["facts in pod 1"]


@pytest.mark.parametrize(
    ("case", "error"), [("data error", "DataError"), ("bug", "WmtpError"), ("rank killed", "WmtpError")]
)
def test_a_pod_answers_for_its_own_ranks_and_one_that_misses_them_is_interrupted(
    outcomes: dict[str, Any], case: str, error: str
) -> None:
    assert outcomes[f"{case} in pod 1"]["error"] == error
    assert "Rank 1 of 2" in outcomes[f"{case} in pod 1"]["message"]
    assert outcomes[f"{case} in pod 0"]["error"] == "Interrupted"
    assert "A rank of another pod was lost" in outcomes[f"{case} in pod 0"]["message"]


def test_error_of_a_rank_arrives_with_its_class_and_message(outcomes: dict[str, Any]) -> None:
    assert outcomes["data error"]["error"] == "DataError"
    assert outcomes["data error"]["message"] == "Rank 1 of 2: row 7 is bad"
    assert outcomes["too little memory"]["error"] == "OutOfMemory"


def test_rank_that_failed_is_named_and_not_the_one_that_misses_it(outcomes: dict[str, Any]) -> None:
    assert outcomes["bug"]["error"] == "WmtpError"
    assert "Rank 1 of 2 failed: ZeroDivisionError: one by nought" in outcomes["bug"]["message"]
    assert 'raise ZeroDivisionError("one by nought")' in outcomes["stderr"]


def test_lost_rank_is_an_interruption_only_after_a_checkpoint(outcomes: dict[str, Any]) -> None:
    assert outcomes["rank killed"]["error"] == "WmtpError"
    assert outcomes["rank killed after a checkpoint"]["error"] == "Interrupted"
    # The agent may see the survivor end first; then only the lack of a record tells who was killed, and not by what.
    for case, rest in (("rank killed", ", before the first checkpoint"), ("rank killed after a checkpoint", "")):
        assert re.match(rf"Rank 1 of 2 was killed by (SIGKILL|a signal){rest}", outcomes[case]["message"])


@pytest.mark.parametrize("case", ["stopped", "stopped twice"])
def test_signal_reaches_the_ranks_and_they_stop_at_a_step(outcomes: dict[str, Any], case: str) -> None:
    assert outcomes[case]["error"] == "Interrupted"
    assert "stopped at a step" in outcomes[case]["message"]


def test_third_signal_ends_ranks_that_do_not_stop(outcomes: dict[str, Any]) -> None:
    assert outcomes["stopped in vain"]["error"] == "Interrupted"
    assert "The ranks were stopped by SIGTERM. A checkpoint is kept" in outcomes["stopped in vain"]["message"]


def test_signal_after_the_work_is_done_does_not_lose_the_result(outcomes: dict[str, Any]) -> None:
    assert outcomes["stopped when done"]["result"] == "done"


def test_nobody_outlives_a_launch(outcomes: dict[str, Any]) -> None:
    ended = {name: outcome for name, outcome in outcomes.items() if name != "stderr"}
    assert {name: outcome["alive"] for name, outcome in ended.items()} == {name: [] for name in ended}
    assert {outcome.get("num_children", 0) for outcome in ended.values()} == {0}
    assert max(outcome["seconds"] for outcome in ended.values()) < 60


def test_signal_handlers_are_restored(outcomes: dict[str, Any]) -> None:
    told = [outcome["handler restored"] for outcome in outcomes.values() if "handler restored" in outcome]
    assert told
    assert all(told)


def test_one_rank_runs_in_this_process() -> None:
    assert distributed.launch(lambda: (os.getpid(), distributed.num_ranks()), num_ranks=1) == (os.getpid(), 1)


def test_unlaunched_reductions_are_their_own_argument() -> None:
    assert distributed.sum_over_ranks(torch.tensor([3])).tolist() == [3]
    assert distributed.broadcast("x") == "x"
    assert distributed.gather("x") == ["x"]
    assert distributed.rank() == 0
    distributed.barrier()


def test_signal_in_one_process_becomes_a_wish_and_a_new_launch_forgets_it() -> None:
    def work() -> tuple[bool, bool]:
        before = distributed.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        return before, distributed.stop_requested()

    handler = signal.getsignal(signal.SIGTERM)
    assert distributed.launch(work, num_ranks=1) == (False, True)
    assert distributed.launch(distributed.stop_requested, num_ranks=1) is False
    assert signal.getsignal(signal.SIGTERM) == handler


def test_more_ranks_than_cuda_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        UserError, match=r"num_ranks of the environment is 2, but this machine has 1 CUDA devices\. Set it to 1"
    ):
        distributed.launch(distributed.rank, num_ranks=2)


def test_mps_trains_in_one_process_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert distributed.launch(os.getpid, num_ranks=2) == os.getpid()
    assert "num_ranks is 2, but MPS" in caplog.text


def test_device_is_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert distributed.device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.device() == torch.device("cuda", 0)


def test_process_with_a_pool_of_threads_spawns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_other_threads", lambda: {"jemalloc_bg_thd"})
    assert distributed._start_method() == "fork"
    monkeypatch.setattr(distributed, "_SECONDS_FOR_THREADS_TO_END", 0.0)
    monkeypatch.setattr(distributed, "_other_threads", lambda: {"python"})
    assert distributed._start_method() == "spawn"


def test_a_thread_that_is_about_to_end_does_not_make_a_process_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([{"python"}, {"python"}, set()])
    monkeypatch.setattr(distributed, "_other_threads", lambda: next(seen))
    assert distributed._start_method() == "fork"
