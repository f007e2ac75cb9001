"""The idempotent runtime: run twice, killed anywhere, damaged, forced, in two places at once."""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest

from mlops_tasks import lease, stage
from mlops_tasks import store as store_module
from mlops_tasks.config.environment import Environment, LeaseTerms
from mlops_tasks.errors import Interrupted, Unavailable, UserError
from mlops_tasks.keys import code_digests
from mlops_tasks.stage import Pointer, Run, accompany, decide, execute
from mlops_tasks.store import Store


@pytest.fixture
def stages(toy: Path) -> ModuleType:
    code_digests.cache_clear()
    return importlib.import_module("toy.stages")


def planned(environment: Environment, stages: ModuleType, name: str = "one", **spec: object) -> Run:
    prefix = Run.prefix_of(environment, "toy", name)
    Store.open(environment.store).create_json(f"{prefix}/spec.json", stages.spec(**spec).model_dump(mode="json"))
    return Run.open(environment, prefix)


def run_all(run: Run, stages: ModuleType) -> list[Pointer]:
    return [
        execute(run, task, index, tasks=stages.TASKS)
        for task in stages.TASKS.values()
        for index in range(run.spec.fan_out.get(task.id, 1))
    ]


def outcomes(pointers: list[Pointer]) -> list[str]:
    return [pointer.outcome for pointer in pointers]


def committed_files(environment: Environment) -> dict[str, bytes]:
    root = Path(environment.store)
    found: dict[str, bytes] = {}
    for manifest in [*root.glob("make/*/manifest.json"), *root.glob("loud/*/manifest.json")]:
        tree = json.loads(manifest.read_text())
        for file in tree["files"]:
            found[f"{tree['key']}/{file['name']}"] = (
                manifest.parent / "attempts" / tree["attempt"] / file["name"]
            ).read_bytes()
    return found


def test_a_second_run_does_no_work_and_points_to_the_same(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_all(planned(environment, stages), stages)
    assert outcomes(first) == ["run", "run", "run", "skipped", "done"]
    monkeypatch.setattr(stages, "make", None)
    monkeypatch.setattr(stages, "loud", None)
    second = run_all(planned(environment, stages, "two"), stages)
    assert outcomes(second) == ["hit", "hit", "hit", "skipped", "done"]
    assert [one.prefix for one in second] == [one.prefix for one in first]


def test_the_manifest_is_a_full_record(environment: Environment, stages: ModuleType) -> None:
    run = planned(environment, stages)
    run_all(run, stages)
    artifact = run.artifact("loud", 1)
    made = run.artifact("make")
    assert artifact is not None and made is not None
    manifest = artifact.manifest
    assert manifest["metrics"] == {"letters": 21}
    assert manifest["inputs"]["made"] == {
        "artifact": made.prefix,
        "digest": made.digest_of("lines*"),
        "files": ["lines*"],
    }
    assert manifest["components"]["code"].keys() == {"toy", "toy.stages", "toy.words"}
    assert (manifest["stage"], manifest["run"]) == ("loud", "toy/one")
    assert manifest["seconds"] == manifest["device_seconds"] >= 0
    assert made.manifest["components"]["config"] == {"seed": 3}
    assert set(made.manifest["versions"]) == {"mlops-tasks", "pyarrow"}


def test_a_changed_seed_changes_exactly_the_keys_below_it(environment: Environment, stages: ModuleType) -> None:
    first = run_all(planned(environment, stages), stages)
    second = run_all(planned(environment, stages, "two", seed=4), stages)
    assert outcomes(second)[:3] == ["run", "run", "run"]
    assert not {one.key for one in first if one.key} & {one.key for one in second if one.key}


def test_an_upstream_that_yields_the_same_bytes_leaves_what_is_below_a_hit(
    environment: Environment, stages: ModuleType
) -> None:
    run_all(planned(environment, stages), stages)
    again = planned(environment, stages, "two", force=("make",))
    assert outcomes(run_all(again, stages))[:3] == ["run", "hit", "hit"]


def test_files_that_nobody_reads_do_not_change_the_keys_below(
    environment: Environment, stages: ModuleType, toy: Path
) -> None:
    run_all(planned(environment, stages), stages)
    before = decide(planned(environment, stages), stages.TASKS["loud"], tasks=stages.TASKS).components["inputs"]
    draft = (store := Store.open(environment.store)).begin("make/other")
    (draft.folder / "lines.txt").write_text("line 0\nline 1\nline 2\n")
    (draft.folder / "unread.txt").write_text("something else")
    assert store.commit(draft, {}).digest_of("lines*") == before["made"]


def test_force_runs_anew_once_in_a_run(environment: Environment, stages: ModuleType) -> None:
    run_all(planned(environment, stages), stages)
    forced = planned(environment, stages, "two", force=("loud",))
    assert outcomes(run_all(forced, stages))[:3] == ["hit", "run", "run"]
    assert outcomes(run_all(forced, stages))[:3] == ["hit", "hit", "hit"]
    assert len(Store.open(environment.store).children(f"{forced.prefix}/forced")) == 2


def test_force_also_takes_checkpoints_away(environment: Environment, stages: ModuleType) -> None:
    run = planned(environment, stages, force=("make",))
    prefix = f"make/{decide(run, stages.TASKS['make'], tasks=stages.TASKS).key}"
    run.store.commit(run.store.begin(f"{prefix}/checkpoints/step-1"), {})
    stage.apply_force(run, stages.TASKS["make"], 0, tasks=stages.TASKS)
    assert run.store.children(f"{prefix}/checkpoints") == []


def test_checkpoints_go_when_the_result_is_committed(environment: Environment, stages: ModuleType) -> None:
    run = planned(environment, stages)
    prefix = f"make/{decide(run, stages.TASKS['make'], tasks=stages.TASKS).key}"
    run.store.commit(run.store.begin(f"{prefix}/checkpoints/step-1"), {})
    run_all(run, stages)
    assert run.store.children(f"{prefix}/checkpoints") == []


def test_a_failure_is_recorded_and_is_never_a_hit(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(attempt: stage.Attempt) -> None:
        (attempt.folder / "half.txt").write_text("half")
        raise ValueError("the disk is made of cheese")

    run = planned(environment, stages)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "make", broken)
        with pytest.raises(ValueError, match="cheese"):
            execute(run, stages.TASKS["make"], tasks=stages.TASKS)
    (failure,) = Path(environment.store).glob("make/*/failures/*.json")
    assert json.loads(failure.read_text())["message"] == "the disk is made of cheese"
    assert not list(Path(environment.store).glob("make/*/attempts/*"))
    assert execute(run, stages.TASKS["make"], tasks=stages.TASKS).outcome == "run"


@pytest.mark.parametrize(
    ("error", "free"),
    [(OSError(errno.ENOSPC, "No space left on device"), 2**40), (RuntimeError("unexpected pos 64"), 0)],
)
def test_a_stage_that_finds_the_disk_full_ends_with_what_to_do(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int
) -> None:
    def make(attempt: stage.Attempt) -> NoReturn:
        raise error

    monkeypatch.setattr(stages, "make", make)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(Unavailable, match=r"is full, so make could not write its result .*Free some space"):
        execute(planned(environment, stages), stages.TASKS["make"], tasks=stages.TASKS)
    assert not list(Path(environment.store).glob("make/*/attempts/*"))


def test_a_failure_says_what_it_cost_and_what_of_it_is_lost(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(attempt: stage.Attempt) -> None:
        time.sleep(0.5)
        if attempt.config["seed"] == 4:
            attempt.store.commit(attempt.store.begin(f"{attempt.prefix}/checkpoints/step-1"), {})
        time.sleep(0.1)
        raise ValueError("stopped")

    monkeypatch.setattr(stages, "make", broken)
    priced = environment.model_copy(update={"prices": {"default": 36.0}})  # a hundredth a second
    for seed in (3, 4):
        with pytest.raises(ValueError, match="stopped"):
            execute(planned(priced, stages, str(seed), seed=seed), stages.TASKS["make"], tasks=stages.TASKS)
    found = [json.loads(path.read_text()) for path in Path(environment.store).glob("make/*/failures/*.json")]
    unsaved, saved = sorted(found, key=lambda one: str(one["run"]))
    assert (unsaved["run"], unsaved["deployment"]) == ("toy/3", "laptop")
    assert unsaved["lost_device_seconds"] == unsaved["device_seconds"] == unsaved["seconds"] >= 0.4
    assert unsaved["cost"] == unsaved["lost_cost"] == pytest.approx(unsaved["seconds"] / 100, abs=1e-5)
    assert 0.1 <= saved["lost_device_seconds"] <= saved["seconds"] - 0.3


def test_a_manifest_says_what_it_cost(environment: Environment, stages: ModuleType) -> None:
    priced = environment.model_copy(update={"prices": {"default": 36.0}})
    for place, is_priced in (
        (environment, False),
        (priced.model_copy(update={"store": f"{environment.store}-2"}), True),
    ):
        run = planned(place, stages)
        execute(run, stages.TASKS["make"], tasks=stages.TASKS)
        manifest = run.artifact("make").manifest  # type: ignore[union-attr]
        assert manifest["cost"] == (pytest.approx(manifest["device_seconds"] / 100, abs=1e-5) if is_priced else None)


def test_a_task_whose_input_has_not_ended_cannot_run_now(environment: Environment, stages: ModuleType) -> None:
    with pytest.raises(Unavailable, match=r"Task make\[0\] of toy/one has not ended"):
        execute(planned(environment, stages), stages.TASKS["loud"], tasks=stages.TASKS)


def test_a_pointer_of_another_version_says_what_to_do(environment: Environment, stages: ModuleType) -> None:
    run = planned(environment, stages)
    run.store.write_json(f"{run.prefix}/make.json", {"task": "make", "uri": "/store/make/k"})
    with pytest.raises(UserError, match=r"(?s)make\.json was written by another version.*Trigger a new run"):
        run.pointer("make")


@pytest.mark.parametrize("part", ["stage", "key"])
def test_a_pointer_that_leads_out_of_the_store_is_refused(
    environment: Environment, stages: ModuleType, part: str
) -> None:
    run = planned(environment, stages)
    made = execute(run, stages.TASKS["make"], tasks=stages.TASKS).model_dump(mode="json")
    run.store.write_json(f"{run.prefix}/make.json", {**made, part: "../../elsewhere"})
    with pytest.raises(
        UserError, match=rf"(?s)make\.json was written by another version.*{part}\n.*should match pattern"
    ):
        run.pointer("make")


def test_a_store_that_was_moved_is_as_good_as_before(
    environment: Environment, stages: ModuleType, tmp_path: Path
) -> None:
    run_all(planned(environment, stages), stages)
    Path(environment.store).rename(tmp_path / "moved")
    moved = environment.model_copy(update={"store": str(tmp_path / "moved")})
    run = Run.open(moved, Run.prefix_of(moved, "toy", "one"))
    assert run.artifact("loud", 1) is not None
    assert outcomes(run_all(run, stages)) == ["hit", "hit", "hit", "skipped", "done"]
    texts = [file.read_text() for file in (tmp_path / "moved").rglob("*.json") if "/runs/" in str(file)]
    assert texts and not any(environment.store in text for text in texts)


def test_an_input_that_was_damaged_since_says_what_to_do(environment: Environment, stages: ModuleType) -> None:
    run = planned(environment, stages)
    made = execute(run, stages.TASKS["make"], tasks=stages.TASKS)
    next(Path(environment.store).glob(f"{made.prefix}/attempts/*/lines.txt")).unlink()
    with pytest.raises(Unavailable, match=r"is not whole any more. Clear that task"):
        execute(run, stages.TASKS["loud"], tasks=stages.TASKS)


def test_an_expected_key_that_differs_names_the_component(environment: Environment, stages: ModuleType) -> None:
    run, task = planned(environment, stages), stages.TASKS["make"]
    decision = decide(run, task, tasks=stages.TASKS)
    for part, error in (("code", Unavailable), ("config", UserError)):
        other = {
            **decision.components,
            part: {**decision.components[part], "toy.words" if part == "code" else "seed": "other"},
        }
        stage.note_key(run, task, 0, stage.Decision("run", other))
        with pytest.raises(error, match=rf"make: .* expected key .* {part}\.(toy\.words|seed): other →"):
            execute(run, task, tasks=stages.TASKS, expect_key=stage.key_of(other))
    assert execute(run, task, tasks=stages.TASKS, expect_key=decision.key).outcome == "run"


def test_a_run_without_a_spec_is_named(environment: Environment) -> None:
    with pytest.raises(UserError, match="Run the task `plan` of this run first"):
        Run.open(environment, "runs/laptop/toy/none")


def test_run_ids_cannot_leave_their_place_or_share_one(environment: Environment) -> None:
    ids = ["a/b", "a%2Fb", "..", "manual__2026-01-01T00:00:00+00:00", "a b"]
    prefixes = [Run.prefix_of(environment, "dag", name) for name in ids]
    assert len({*prefixes}) == len(ids)
    assert all(prefix.count("/") == 3 for prefix in prefixes)


def test_runs_come_newest_first(environment: Environment, stages: ModuleType) -> None:
    store = Store.open(environment.store)
    for name, created in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        store.create_json(
            f"{Run.prefix_of(environment, 'toy', name)}/spec.json",
            stages.spec().model_dump(mode="json") | {"created": created},
        )
    assert [run.name for run in stage.runs(environment)] == ["toy/a", "toy/b", "toy/c"]


def test_a_spec_of_another_version_is_told_and_passed_over(
    environment: Environment, stages: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    planned(environment, stages)
    for name, lost in (("undated", "created"), ("empty", "recipe")):
        tree = stages.spec().model_dump(mode="json")
        del tree[lost]
        Store.of(environment).create_json(f"{Run.prefix_of(environment, 'toy', name)}/spec.json", tree)
    assert [run.name for run in stage.runs(environment)] == ["toy/one"]
    assert [record.message.partition(" was written by")[0].rpartition("/toy/")[2] for record in caplog.records] == [
        "empty/spec.json", "undated/spec.json",
    ]  # fmt: skip
    assert [run.name for run in stage.runs(environment, recipe="toy")] == ["toy/one"]


WRITES = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}


def in_a_process_that_dies(
    run: Run, stages: ModuleType, *, at_write: int | None = None, after_seconds: float | None = None
) -> bool:
    """Run everything in a process of its own that is killed at a point; True if it came to its end before."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status in (0, signal.SIGKILL), status
        return status == 0
    seen = 0

    def die(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in WRITES and arguments and str(arguments[0]).startswith(run.store.uri):
            seen += 1
            if seen == at_write:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        if at_write is not None:
            sys.addaudithook(die)
        if after_seconds is not None:
            threading.Timer(after_seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        run_all(run, stages)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture
def unbroken(tmp_path: Path, stages: ModuleType) -> dict[str, bytes]:
    elsewhere = Environment(store=str(tmp_path / "unbroken"), mlflow_uri="sqlite:///x")
    run_all(planned(elsewhere, stages), stages)
    return committed_files(elsewhere)


def finish_and_compare(environment: Environment, run: Run, stages: ModuleType, unbroken: dict[str, bytes]) -> None:
    # What is committed after the kill is whole already; the next run adds what is missing and nothing else.
    assert committed_files(environment).items() <= unbroken.items()
    run_all(run, stages)
    assert committed_files(environment) == unbroken
    assert outcomes(run_all(run, stages))[:3] == ["hit", "hit", "hit"]


def test_killed_before_every_single_write_the_next_run_ends_with_the_same_bytes(
    environment: Environment, stages: ModuleType, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for at in range(1, 1000):
        place = environment.model_copy(update={"store": str(tmp_path / f"kill{at}")})
        run = planned(place, stages)
        if in_a_process_that_dies(run, stages, at_write=at):
            break
        finish_and_compare(place, run, stages, unbroken)
    assert at > 50


def test_killed_at_random_instants_the_next_run_ends_with_the_same_bytes(
    environment: Environment, stages: ModuleType, unbroken: dict[str, bytes]
) -> None:
    for name in range(20):
        run = planned(environment, stages, str(name), force=("make", "loud"))
        in_a_process_that_dies(run, stages, after_seconds=random.uniform(0.0, 0.04))
        finish_and_compare(environment, run, stages, unbroken)


def test_processes_at_once_give_one_result(
    environment: Environment, stages: ModuleType, unbroken: dict[str, bytes]
) -> None:
    (Path(environment.store).parent / "made.txt").unlink()
    for round_ in range(5):
        place = environment.model_copy(update={"store": f"{environment.store}-{round_}"})
        runs = [planned(place, stages, str(name)) for name in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda run: in_a_process_that_dies(run, stages), runs))
        assert committed_files(place) == unbroken
        assert len({run.pointer("make").digest for run in runs}) == 1  # type: ignore[union-attr]
        # Whoever was second waited for the first one's lease, and found a hit.
        assert (Path(place.store).parent / "made.txt").read_text() == "."
        (Path(place.store).parent / "made.txt").unlink()


def test_force_waits_for_a_process_that_works_on_the_key(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(environment, stages)
    prefix = f"make/{decide(run, stages.TASKS['make'], tasks=stages.TASKS).key}"
    run.store.write_json(f"{prefix}/checkpoints/step-00000001/manifest.json", {"step": 1})
    impatient = environment.model_copy(update={"lease": LeaseTerms(wait_seconds=0)})
    forced = planned(impatient, stages, "two", force=("make",))
    with lease.held(run.store, prefix, terms=LeaseTerms(), run="other", is_done=lambda: False):
        with pytest.raises(Unavailable, match="is held by"):
            execute(forced, stages.TASKS["make"], tasks=stages.TASKS)
        assert run.store.read_json(f"{prefix}/checkpoints/step-00000001/manifest.json") == {"step": 1}
    assert execute(forced, stages.TASKS["make"], tasks=stages.TASKS).outcome == "run"
    assert run.store.read_json(f"{prefix}/checkpoints/step-00000001/manifest.json") is None


def test_a_result_that_is_gone_again_while_we_waited_is_made(
    environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = planned(environment, stages), lease.held
    times = iter([False, True])

    @contextmanager
    def held(*place: Any, **how: Any) -> Iterator[Any]:
        with real(*place, **how) as mine:
            yield mine if next(times) else None

    monkeypatch.setattr(lease, "held", held)
    pointer = execute(run, stages.TASKS["make"], tasks=stages.TASKS)
    assert pointer.outcome == "run" and run.artifact("make") is not None


class _Jumping(datetime):
    """A clock that goes a year back each time it is asked."""

    count = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        cls.count += 1
        return datetime(2100 - cls.count, 1, 1, tzinfo=tz)


def test_the_clock_may_jump(environment: Environment, stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(environment, stages)
    run_all(run, stages)
    for place in (stage, store_module):
        monkeypatch.setattr(place, "datetime", _Jumping)
    assert outcomes(run_all(run, stages))[:3] == ["hit", "hit", "hit"]
    assert outcomes(run_all(planned(environment, stages, "two", seed=4), stages))[:3] == ["run", "run", "run"]
    assert _Jumping.count > 3


def accompanied(run: Run, stages: ModuleType, may_begin: Callable[[], bool]) -> None:
    task = stages.TASKS["make"]
    key = decide(run, task, tasks=stages.TASKS).key
    accompany(run, task, tasks=stages.TASKS, expect_key=key, may_begin=may_begin)


def num_made(environment: Environment) -> int:
    file = Path(environment.store).parent / "made.txt"
    return len(file.read_text()) if file.exists() else 0


def test_another_pod_than_the_first_starts_nothing_when_the_result_is_there(
    environment: Environment, stages: ModuleType
) -> None:
    run = planned(environment, stages)

    def first_commits_meanwhile() -> bool:
        execute(run, stages.TASKS["make"], tasks=stages.TASKS)
        return False

    accompanied(run, stages, first_commits_meanwhile)
    assert num_made(environment) == 1
    accompanied(run, stages, lambda: pytest.fail("it is a hit"))
    assert num_made(environment) == 1


def test_another_pod_than_the_first_works_commits_nothing_and_is_interrupted_if_the_first_did_not(
    environment: Environment, stages: ModuleType
) -> None:
    run = planned(environment, stages)
    with pytest.raises(Interrupted, match="the first pod ended before it committed make/"):
        accompanied(run, stages, lambda: True)
    assert num_made(environment) == 1
    assert committed_files(environment) == {} and run.pointer("make") is None
