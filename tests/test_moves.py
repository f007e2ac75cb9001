"""Claims about moving aliases by hand: on a real SQLite registry, and a model's whole life on a server with PostgreSQL too."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow_server import serving
from nights import (
    NAME,
    STRONG,
    STRONGER,
    WEAK,
    Killed,
    Night,
    copy_database,
    kill_after,
    registered,
    solved,
    tags_of,
    three_versions,
    tuesday,
)
from postgres_server import address, postgres

from mlops_tasks import lease, registry
from mlops_tasks.__main__ import main
from mlops_tasks.config.environment import Environment, LeaseTerms
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.registry import champion, moves, promotion
from mlops_tasks.registry.moves import Move, Order
from mlops_tasks.store import Store
from mlops_tasks.tracking import connection

CHECKOUT = Path(__file__).resolve().parents[1]


def promote(place: Environment, wanted: str, reason: str = "because", by: str = "anna@box") -> Move:
    return moves.promote(place, NAME, Order("promote", wanted, by=by, reason=reason))


def rollback(place: Environment, reason: str = "because", by: str = "anna@box", to: str | None = None) -> Move:
    return moves.rollback(place, NAME, Order("rollback", to, by=by, reason=reason))


def archive(place: Environment, wanted: str, reason: str = "because", by: str = "anna@box") -> Move:
    return moves.archive(place, NAME, Order("archive", wanted, by=by, reason=reason))


def aliases(environment: Environment) -> dict[str, str]:
    return registered(environment)[1]


def wmtp(environment: Environment, *arguments: str) -> tuple[int, str]:
    """`wmtp registry …` in this process."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(["registry", arguments[0], "--env", environment_file(environment), *arguments[1:]])
    return code, out.getvalue()


def environment_file(environment: Environment) -> str:
    path = Path(environment.store).parent / "environment.yaml"
    path.write_text(yaml.safe_dump(environment.model_dump(mode="json", exclude_unset=True)))
    return str(path)


@pytest.fixture
def line(environment: Environment, mlflow_database: Path, tmp_path: Path) -> Environment:
    """Three versions, whole in the store; version 1 is the champion."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    three_versions(environment)
    return environment


def test_a_promotion_says_who_when_and_why(line: Environment) -> None:
    moved = promote(line, "2", "the gate's set is too small")
    assert (moved.version, moved.over, moved.by, moved.outcome) == ("2", "1", "anna@box", "done")
    assert aliases(line) == {"champion": "2", "previous": "1"}
    tags = tags_of(line, "2")
    assert (tags["promoted_by"], tags["promoted_reason"]) == ("anna@box", "the gate's set is too small")
    assert tags["promoted_at"] == moved.at and moved.at.endswith("+00:00")
    assert tags_of(line, "1")["promoted_by"] == "by hand", "nobody else knows who made it champion"
    assert moves.history(Store.of(line), NAME) == [moved]


def test_a_rollback_gives_back_the_previous_version_and_marks_the_other(line: Environment) -> None:
    promote(line, "2")
    moved = rollback(line, "writes nonsense")
    assert (moved.version, moved.over) == ("1", "2")
    assert aliases(line) == {"champion": "1", "previous": "2"}
    tags = tags_of(line, "2")
    assert (tags["rolled_back_by"], tags["rolled_back_reason"]) == ("anna@box", "writes nonsense")


def test_a_rollback_goes_to_any_version_that_is_named(line: Environment) -> None:
    rollback(line, to="3")
    assert aliases(line) == {"champion": "3", "previous": "1"}
    with pytest.raises(UserError, match="was rolled back itself"):
        rollback(line, "again", to="previous")
    rollback(line, "again", to="1")
    assert aliases(line) == {"champion": "1", "previous": "3"}


def test_the_same_order_again_is_done_already(line: Environment) -> None:
    first = promote(line, "2")
    assert promote(line, "2") == first
    back = rollback(line)
    assert rollback(line) == back
    assert aliases(line) == {"champion": "1", "previous": "2"}
    away = archive(line, "3")
    assert archive(line, "3") == away
    assert len(moves.history(Store.of(line), NAME)) == 3


def test_an_order_that_is_done_once_is_not_done_again_whatever_moved_since(line: Environment) -> None:
    promote(line, "2")
    order = Order("rollback", None, by="anna (model_rollback/monday)", reason="writes nonsense", is_once=True)
    back = moves.rollback(line, NAME, order)
    promote(line, "3", "the night's")
    assert moves.rollback(line, NAME, order) == back, "a task that is cleared"
    assert aliases(line) == {"champion": "3", "previous": "1"}


def test_the_same_reason_for_another_version_is_another_order(line: Environment) -> None:
    promote(line, "2", "spring cleaning")
    promote(line, "3", "spring cleaning")
    assert aliases(line) == {"champion": "3", "previous": "2"}
    promote(line, "1", "a trial")
    archive(line, "2", "spring cleaning")
    with connection(line) as client:
        client.delete_registered_model_alias(NAME, "previous")
    archive(line, "3", "spring cleaning")
    assert all("archived_at" in tags_of(line, number) for number in "23")
    with connection(line) as client:
        client.delete_model_version_tag(NAME, "3", "archived_at")
    archive(line, "3", "spring cleaning")
    assert "archived_at" in tags_of(line, "3"), "it had been taken out again in between"


def test_an_alias_that_was_promoted_and_is_gone_is_the_same_order_again(line: Environment) -> None:
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "candidate", "3")
    first = promote(line, "candidate")
    assert aliases(line) == {"champion": "3", "previous": "1"}
    assert promote(line, "candidate") == first
    with pytest.raises(UserError, match="no version or alias 'candidate'"):
        promote(line, "candidate", "for another reason")


def test_two_rollbacks_do_not_bring_back_what_the_first_took_away(line: Environment) -> None:
    promote(line, "2")
    rollback(line, "writes nonsense")
    with pytest.raises(
        UserError, match=r"previous version 2 of coder was rolled back itself, .* by anna@box \(writes nonsense\).*--to"
    ):
        rollback(line, "also I", by="bob@box")
    assert aliases(line) == {"champion": "1", "previous": "2"}
    rollback(line, "it was the cable", to="2")
    promote(line, "3")
    assert rollback(line, "not 3").version == "2", "it has been champion since"


def test_a_rollback_without_a_previous_version_asks_for_one(line: Environment) -> None:
    with pytest.raises(UserError, match=r"coder has no alias `previous`.*--to"):
        rollback(line)
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "previous", "1")
    with pytest.raises(UserError, match="version 1 both as champion and as previous"):
        rollback(line)


def test_an_archived_version_gets_no_alias(line: Environment) -> None:
    archive(line, "2", "its licence")
    assert tags_of(line, "2")["archived_reason"] == "its licence"
    for move in (lambda: promote(line, "2"), lambda: rollback(line, to="2")):
        with pytest.raises(
            UserError, match=r"Version 2 of coder was archived .* by anna@box \(its licence\).*`archived_at`"
        ):
            move()
    with pytest.raises(UserError, match=r"Version 2 of coder was archived .*Nothing was changed"):
        archive(line, "2", "once more")
    assert aliases(line) == {"champion": "1"}


def test_a_version_that_somebody_may_load_is_not_archived(line: Environment) -> None:
    promote(line, "2")
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "mine", "3")
    for number, alias in (("2", "champion"), ("1", "previous"), ("3", "mine")):
        with pytest.raises(UserError, match=f"Version {number} of coder has the alias {alias}.*Move the alias first"):
            archive(line, number)


def test_a_version_whose_artifact_is_gone_is_not_loaded(line: Environment) -> None:
    store = Store.of(line)
    (weights,) = Path(line.store).glob("train/k2/attempts/*/weights")
    weights.unlink()
    with pytest.raises(
        UserError, match=r"Version 2 of coder is .*/train/k2, which is not whole there any more.*choose another version"
    ):
        promote(line, "2")
    store.quarantine("train/k3", "forced")  # another one may have its place: it is whole all the same
    promote(line, "3")
    assert aliases(line) == {"champion": "3", "previous": "1"}


def test_a_version_that_promote_did_not_register_is_not_loaded(line: Environment) -> None:
    with connection(line) as client:
        client.create_model_version(NAME, source="/somewhere")
    with pytest.raises(UserError, match="Version 4 of coder was not registered by promote"):
        promote(line, "4")


def test_the_champion_is_not_promoted_again(line: Environment) -> None:
    with pytest.raises(UserError, match="Version 1 of coder is the champion already, promoted by hand"):
        promote(line, "champion")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        (NAME, "9", "coder has no version or alias '9'. It has champion, 3, 2, 1"),
        ("codre", "1", "no version of 'codre' in the registry. It has coder"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(line: Environment, name: str, version: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        moves.promote(line, name, Order("promote", version, by="anna", reason="x"))


def test_a_move_needs_a_reason() -> None:
    with pytest.raises(UserError, match="The reason of a rollback is ' '"):
        Order("rollback", None, by="anna", reason=" ")


def test_a_decision_about_another_champion_is_stale(line: Environment) -> None:
    promote(line, "2", "better")
    why = (
        r"had version 1 as its champion when this was decided, and has version 2 now "
        r"\(.*promote version 2 over version 1 by anna@box: better\)"
    )
    with (
        connection(line) as client,
        moves.moving(client, line, NAME, by="bob") as held,
        pytest.raises(UserError, match=why),
    ):
        held.move(Order("promote", "3", by="bob", reason="x"), "3", over="1")
    assert aliases(line) == {"champion": "2", "previous": "1"}


def test_whoever_waits_too_long_is_told_for_whom(line: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "_TERMS", LeaseTerms(ttl_seconds=20, wait_seconds=0))
    told = r"registry/coder is held by process \d+ on .* for bob@box"
    with (
        connection(line) as client,
        moves.moving(client, line, NAME, by="bob@box"),
        pytest.raises(Unavailable, match=told),
    ):
        promote(line, "2")


def test_a_process_that_was_taken_for_dead_moves_nothing(line: Environment) -> None:
    store = Store.of(line)
    with connection(line) as client, moves.moving(client, line, NAME, by="bob@box") as held:
        now = store.read_json("registry/coder/lease.json")
        store.write_json("registry/coder/lease.json", {**now, "holder": "other", "token": now["token"] + 1})
        with pytest.raises(Unavailable, match="has taken over"):
            held.move(Order("promote", "2", by="bob", reason="x"), "2", over="1")
    assert aliases(line) == {"champion": "1"}


def test_of_two_that_write_one_entry_of_the_log_one_is_refused(
    line: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(line, "2")
    monkeypatch.setattr(moves, "_entries", lambda store, name: [])  # what it knew before it slept
    with pytest.raises(Unavailable, match=r"registry/coder/000001\.json was written by another process"):
        promote(line, "3")
    assert aliases(line) == {"champion": "2", "previous": "1"}


# Kills


def killed_after(num_writes: int, act: Callable[[], object]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, num_writes)
        try:
            act()
        except Killed:
            return True
    return False


def rolled_back(environment: Environment) -> Move:
    return rollback(environment)


def promoted(environment: Environment) -> Move:
    return promote(environment, "3")


def archived(environment: Environment) -> Move:
    with connection(environment) as client:
        if "candidate" in registry.aliases(client, NAME):
            client.delete_registered_model_alias(NAME, "candidate")
    return archive(environment, "3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "after", "tag"),
    [
        (promoted, {"champion": "3", "previous": "2"}, "promoted_reason"),
        (rolled_back, {"champion": "1", "previous": "2", "candidate": "3"}, "rolled_back_reason"),
        (archived, {"champion": "2", "previous": "1"}, "archived_reason"),
    ],
)
def test_killed_after_any_write_the_same_command_ends_as_if_nothing_had_been(
    line: Environment, tmp_path: Path, act: Callable[[Environment], Move], after: dict[str, str], tag: str
) -> None:
    promote(line, "2", "first")
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "candidate", "3")
    database, before = tmp_path / "mlflow.db", tmp_path / "before.db"
    copy_database(database, before)
    shutil.copytree(tmp_path / "store/registry", tmp_path / "registry")
    num_writes, is_killed = 0, True
    while is_killed:
        num_writes += 1
        copy_database(before, database)
        shutil.rmtree(tmp_path / "store/registry")
        shutil.copytree(tmp_path / "registry", tmp_path / "store/registry")
        is_killed = killed_after(num_writes, lambda: act(line))
        moved = act(line)
        assert aliases(line) == after, num_writes
        told = moves.history(Store.of(line), NAME)
        assert [one for one in told if one.outcome == "done"] == [moved, told[-1]], num_writes
        assert {one.outcome for one in told} <= {"done", "undone"}
        assert tags_of(line, "3" if act is not rolled_back else "2")[tag] == "because"
    assert num_writes > 6


def test_what_was_broken_off_before_the_champion_moved_is_undone_by_whoever_comes_next(line: Environment) -> None:
    promote(line, "2", "first")
    # Lease, entry, `promoted_by` is there, `previous`: the fourth write would be the champion's.
    assert killed_after(3, lambda: promote(line, "3", "second"))
    assert aliases(line) == {"champion": "2", "previous": "2"}
    archive(line, "3", by="bob@box")
    assert aliases(line) == {"champion": "2", "previous": "1"}
    assert [one.outcome for one in moves.history(Store.of(line), NAME)] == ["done", "undone", "done"]


KILLED = """
import os, signal, sys
from mlflow.tracking import MlflowClient
from mlops_tasks.__main__ import main
moved = MlflowClient.set_registered_model_alias
def killed(self, name, alias, version):
    moved(self, name, alias, version)
    if alias == "champion":
        os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.set_registered_model_alias = killed
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_half_way_leaves_nothing_that_the_same_command_does_not_mend(
    line: Environment,
) -> None:
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "candidate", "2")
    arguments = [
        "registry",
        "promote",
        "--env",
        environment_file(line),
        NAME,
        "2",
        "--reason",
        "better",
        "--by",
        "anna",
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=CHECKOUT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert aliases(line) == {"champion": "2", "previous": "1", "candidate": "2"}
    assert "promoted_by" not in tags_of(line, "2")

    code, text = wmtp(line, "promote", NAME, "2", "--reason", "better", "--by", "anna")

    assert code == 0 and "promote version 2 over version 1 by anna: better" in text
    assert aliases(line) == {"champion": "2", "previous": "1"}
    assert tags_of(line, "2")["promoted_by"] == "anna"
    assert len(moves.history(Store.of(line), NAME)) == 1


@pytest.fixture(scope="module")
def mlflow_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres() as (server, _), serving(tmp_path_factory.mktemp("mlflow"), address(server)) as uri:
        yield uri


@pytest.fixture
def on_postgres(mlflow_on_postgres: str, tmp_path: Path) -> Iterator[Environment]:
    """An empty store, and a registry without our product line on MLflow's own server with PostgreSQL."""
    environment = Environment(store=str(tmp_path / "store"), mlflow_uri=mlflow_on_postgres)
    yield environment
    with connection(environment) as client:
        client.delete_registered_model(NAME)


@pytest.mark.slow
def test_of_two_promotions_at_one_time_one_wins_and_one_is_told_why(on_postgres: Environment) -> None:
    line = on_postgres
    three_versions(line)
    file = environment_file(line)
    # Both look at the champion and then wait for one who holds the lease: this process.
    with lease.held(Store.of(line), "registry/coder", terms=LeaseTerms(), run="the test", is_done=lambda: False):
        racing = {number: started(file, number) for number in "23"}
        for process in racing.values():
            assert process.stderr is not None
            assert any("waits:" in text for text in process.stderr), "it ended without waiting"
    told = {number: process.communicate(timeout=120) for number, process in racing.items()}
    codes = {process.returncode: number for number, process in racing.items()}

    assert sorted(codes) == [0, 64], told
    winner, loser = codes[0], codes[64]
    assert aliases(line) == {"champion": winner, "previous": "1"}
    assert re.search(
        rf"coder had version 1 as its champion when this was decided, and has version {winner} now "
        rf"\(.* promote version {winner} over version 1 by anna: I like {winner}\). Nothing was moved",
        told[loser][1],
    ), told
    assert "promoted_by" not in tags_of(line, loser)


def started(file: str, number: str) -> subprocess.Popen[str]:
    arguments = ["registry", "promote", "--env", file, NAME, number, "--reason", f"I like {number}", "--by", "anna"]
    return subprocess.Popen(
        [sys.executable, "-m", "mlops_tasks", *arguments],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


# A model's life


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def monday_anywhere(request: pytest.FixtureRequest) -> Night:
    """The first night on a local database, or on MLflow's own server with PostgreSQL."""
    if request.param == "sqlite":
        night: Night = request.getfixturevalue("monday")
        return night
    return Night(request.getfixturevalue("on_postgres"))


def test_a_models_life_promote_refuse_promote_rollback_archive(monday_anywhere: Night) -> None:
    monday, environment = monday_anywhere, monday_anywhere.environment
    assert promotion.promote(monday.run(STRONG, WEAK))["outcome"] == "promoted"
    assert promotion.promote(tuesday(monday).run(WEAK, STRONG))["outcome"] == "refused"
    wednesday = replace(monday, name="wednesday", weights="third", key="ghi", champion=champion(environment, NAME))
    better = wednesday.run(STRONGER, STRONG)
    assert promotion.promote(better)["outcome"] == "promoted"
    assert registered(environment) == (3, {"champion": "3", "previous": "1", "candidate": "2"})

    code, text = wmtp(environment, "rollback", NAME, "--reason", "writes nonsense", "--by", "anna")
    assert code == 0 and "rollback version 1 over version 3 by anna: writes nonsense" in text
    assert wmtp(environment, "archive", NAME, "3", "--reason", "bad", "--by", "anna")[0] == 64, "it is the previous one"
    thursday = replace(wednesday, name="thursday", champion=champion(environment, NAME))
    again = promotion.promote(thursday.run(STRONGER, STRONG))
    assert again["outcome"] == "refused" and "by anna (writes nonsense)" in again["reason"], "not by night"

    assert wmtp(environment, "promote", NAME, "candidate", "--reason", "for a trial", "--by", "bob")[0] == 0
    assert wmtp(environment, "archive", NAME, "3", "--reason", "bad", "--by", "anna")[0] == 0
    assert registered(environment) == (3, {"champion": "2", "previous": "1"})
    assert wmtp(environment, "promote", NAME, "3", "--reason", "why not", "--by", "bob")[0] == 64
    friday = replace(wednesday, name="friday", champion=champion(environment, NAME))
    assert "was archived" in promotion.promote(friday.run(STRONGER, WEAK))["reason"]

    code, text = wmtp(environment, "list", NAME)
    _, head, *rows = text.splitlines()
    first, second = rows[4:6]
    assert code == 0 and head.split()[:4] == ["version", "aliases", "stage", "algorithm"]
    assert [row.split()[:3] for row in rows[:3]] == [
        ["3", "Archived", "uniform"],
        ["2", "champion", "Production"],
        ["1", "previous", "None"],
    ]
    assert "95.0% (83.5% to 98.6%)" in rows[0] and "(bad)" in rows[0] and " by anna (writes nonsense)" in rows[0]
    assert first.endswith(" archive version 3 by anna: bad")
    assert second.endswith(" promote version 2 over version 1 by bob: for a trial")

    code, text = wmtp(environment, "compare", NAME, "1", "champion", "--metric", "final/gate/pass")
    assert code == 0
    assert text.splitlines()[:2] == ["metric                1     2", "final/gate/pass_at_1  0.75  0.25"]
    assert "version 2 minus version 1 on 40 problems: -50.0 points of pass@1, 95% interval -" in text
    assert "by the first program of version 2 only: 0, of version 1 only: 20; McNemar's exact p 1.91e-06" in text


def test_a_program_is_told_where_the_version_is_that_production_loads_again(line: Environment) -> None:
    promote(line, "2")
    code, text = wmtp(line, "rollback", NAME, "--reason", "x", "--by", "anna", "--json")
    told, tags = json.loads(text), tags_of(line, "1")
    assert code == 0 and len(text.splitlines()) == 1
    assert (told["name"], told["version"], told["over"], told["aliases"]) == (NAME, "1", "2", ["champion"])
    assert (told["by"], told["reason"], told["digest"]) == ("anna", "x", tags["digest"])
    assert told["manifest"] == f"{Store.of(line).uri}/train/k1/manifest.json"


def test_versions_that_cannot_be_paired_are_compared_by_metrics_and_say_why(monday: Night) -> None:
    promotion.promote(monday.run(STRONG, WEAK))
    others = solved(*range(35), of=39)
    promotion.promote(replace(monday, name="other", weights="second", key="def").run(others, others))
    with connection(monday.environment) as client:
        client.create_model_version(NAME, source="/somewhere")

    code, text = wmtp(monday.environment, "compare", NAME, "1", "2", "3", "--metric", "final/gate/pass")

    assert code == 0
    head, score, _, second, _, third = text.splitlines()
    assert (head.split(), score.split()) == (["metric", "1", "2", "3"], ["final/gate/pass_at_1", "0.75", "0.897436"])
    assert re.search("version 2 and version 1 are not compared .* 1 problems are in one only: p39", second)
    assert re.search("version 3 and version 1 are not compared .* Version 3 names no stored outcomes", third)
    with pytest.raises(SystemExit):
        wmtp(monday.environment, "compare", NAME)
    assert wmtp(monday.environment, "compare", NAME, "1")[0] == 64


def test_all_models_are_listed_also_one_without_a_version(line: Environment) -> None:
    with connection(line) as client:
        client.create_registered_model("empty")
    code, text = wmtp(line, "list")
    assert code == 0
    assert [text.splitlines().index(name) for name in (NAME, "empty")] == [0, 6]
    assert wmtp(line, "list", "codre")[0] == 64


def test_the_older_stages_are_shown_to_people_and_to_programs(line: Environment) -> None:
    today = archive(line, "2", "its licence").at[:10]
    with connection(line) as client:
        client.set_registered_model_alias(NAME, "candidate", "3")
        client.create_model_version(NAME, source="/somewhere")
    code, text = wmtp(line, "list", NAME)
    assert code == 0 and text.splitlines()[1].split()[:3] == ["version", "aliases", "stage"]
    assert [" ".join(row.split()[:3]) for row in text.splitlines()[2:5]] == [
        "4 None",
        "3 candidate Staging",
        "2 Archived " + today,
    ]
    assert text.splitlines()[5].split() == ["1", "champion", "Production"]
    code, text = wmtp(line, "list", "--json")
    found = json.loads(text)
    assert code == 0 and [(one["version"], one["stage"], one["aliases"]) for one in found] == [
        ("4", "None", []),
        ("3", "Staging", ["candidate"]),
        ("2", "Archived", []),
        ("1", "Production", ["champion"]),
    ]
    assert found[2]["tags"]["archived_reason"] == "its licence" and {one["name"] for one in found} == {NAME}


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("compare", NAME, "1", "2"),
        ("rollback", NAME, "--reason", "x"),
        ("promote", NAME, "2", "--reason", "x"),
    ],
)
def test_asking_a_registry_that_does_not_exist_makes_none(environment: Environment, command: tuple[str, ...]) -> None:
    assert wmtp(environment, *command)[0] == 64
    assert not Path(environment.store).with_name("mlflow.db").exists()


def test_starting_the_program_loads_nothing_heavy() -> None:
    heavy = "{'mlflow', 'torch', 'numpy', 'pyarrow'}"
    code = f"import sys, mlops_tasks.__main__; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)
