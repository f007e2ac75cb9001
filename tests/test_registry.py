"""Claims about promotion: on a real SQLite registry (with a real model on a real server: test_completer)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port
from nights import (
    NAME,
    RECIPE,
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
    tuesday,
)  # fmt: skip

from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.evaluation.metrics import Interval, paired_bootstrap
from mlops_tasks.registry import Reference, aliased, champion, promotion
from mlops_tasks.registry.promotion import promote, weigh
from mlops_tasks.stage import Champion, Run
from mlops_tasks.tracking import connection

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def test_first_candidate_ever_is_compared_with_the_base_model(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    result = promote(run)
    assert (result["outcome"], result["version"]) == ("promoted", "1")
    assert registered(monday.environment) == (1, {"champion": "1"})
    evidence = result["evidence"]
    assert evidence["compared_with"] == "the base model"
    assert (evidence["candidate"], evidence["baseline"], evidence["difference"]) == (0.75, 0.25, 0.5)
    assert 0.3 < evidence["lower_bound"] < 0.5 < evidence["high"] < 0.7
    assert (evidence["only_candidate"], evidence["only_baseline"]) == (20, 0)
    assert evidence["mcnemar_p"] == pytest.approx(2 / 2**20)
    assert "75.0% against 25.0% of the base model on 40 problems: +50.0 points" in result["reason"]
    json.dumps(result, allow_nan=False)


def test_champion_names_the_artifact_that_was_promoted(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    promote(run)
    train = run.artifact("train")
    assert train is not None
    assert champion(monday.environment, NAME) == Champion(name=NAME, version="1", key="abc", digest=train.digest)


def test_every_aliased_version_is_listed_for_whoever_looks_after_the_store(monday: Night) -> None:
    assert aliased(monday.environment) == []
    run = monday.run(STRONG, WEAK)
    promote(run)
    train = run.artifact("train")
    assert train is not None
    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "mine", "1")
        client.create_registered_model("another")
        client.create_model_version("another", source="/elsewhere")
        client.set_registered_model_alias("another", "champion", "1")  # not by promote: nothing in the store is it
    others, ours = aliased(monday.environment)
    assert (others.name, others.aliases, others.model, others.outcomes) == ("another", ("champion",), None, None)
    judged = run.artifact("judge", 0)
    assert judged is not None
    assert (ours.aliases, ours.model) == (("champion", "mine"), Reference("train/abc", train.digest))
    assert ours.outcomes == Reference(judged.prefix, judged.digest), "the evidence is needed too"
    night = tuesday(monday)
    promote(night.run(STRONGER, STRONG))
    assert {(one.number, one.aliases) for one in aliased(monday.environment) if one.name == NAME} == {
        ("2", ("champion",)),
        ("1", ("mine", "previous")),
    }


def test_a_registry_that_does_not_exist_yet_lists_nothing(environment: Environment, tmp_path: Path) -> None:
    assert aliased(environment) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_evidence_is_on_the_version(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    promote(run)
    tags = tags_of(monday.environment, "1")
    judged = run.artifact("judge", 2)
    assert judged is not None
    assert tags["stage_key"] == "abc"
    assert tags["gate.verdict"] == "passed"
    assert tags["gate.difference"] == "0.5"
    assert tags["gate.baseline_outcomes"] == judged.digest
    assert tags["algorithm"] == "uniform"
    assert tags["dag_run"] == "wmtp_daily/monday"


def test_refused_candidate_is_registered_with_the_reason_and_production_stays(monday: Night) -> None:
    result = promote(monday.run(WEAK, WEAK))
    assert result["outcome"] == "refused"
    assert "+0.0 points, whose 95% lower bound +0.0 is not above +0.0" in result["reason"]
    assert registered(monday.environment) == (1, {"candidate": "1"})
    tags = tags_of(monday.environment, "1")
    assert (tags["gate.verdict"], tags["gate.reason"]) == ("refused", result["reason"])
    assert champion(monday.environment, NAME) is None


def test_better_candidate_takes_the_place_and_the_old_champion_is_kept(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    result = promote(tuesday(monday).run(STRONGER, STRONG))
    assert (result["outcome"], result["version"]) == ("promoted", "2")
    assert result["evidence"]["compared_with"] == "version 1"
    assert registered(monday.environment) == (2, {"champion": "2", "previous": "1"})


def test_difference_that_chance_explains_is_refused(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    lucky = solved(*range(31))  # one problem more
    result = promote(tuesday(monday).run(lucky, STRONG))
    assert result["outcome"] == "refused"
    assert "is not above" in result["reason"]
    assert registered(monday.environment) == (2, {"champion": "1", "candidate": "2"})


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({}, True),
        ({"min_difference": 0.2}, False),  # 30 of 40 against 22 of 40: 20 points, and no bound is above that
        ({"confidence": 0.999}, False),  # eight won and none lost: 1 in 256
        ({"min_difference": -0.9, "confidence": 0.999}, True),  # nothing is asked for, so chance is no objection
    ],
)
def test_every_setting_of_the_gate_counts(
    monday: Night, gate: dict[str, float], passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = monday.run(STRONG, solved(*range(22)))
    changed = RECIPE.gate.model_copy(update={"num_resamples": 777, **gate})
    run = replace(run, spec=run.spec.model_copy(update={"recipe": RECIPE.model_copy(update={"gate": changed})}))
    asked: list[int] = []

    def watched(*scores: Sequence[float], num_resamples: int, **how: Any) -> Interval:
        asked.append(num_resamples)
        return paired_bootstrap(*scores, num_resamples=num_resamples, **how)

    monkeypatch.setattr(promotion, "paired_bootstrap", watched)
    candidate = run.artifact("train")
    assert candidate is not None
    assert weigh(run, candidate).evidence.passed is passed
    assert asked == [777]


def test_promoting_again_changes_nothing(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    first = promote(run)
    assert promote(run) == first, "a task that is repeated says what it said"
    again = promote(replace(tuesday(monday), weights="first", key="abc").run(STRONG, STRONG))
    assert (again["outcome"], again["version"], again["evidence"]) == ("already champion", "1", {})
    assert again["reason"].endswith("is the champion already, promoted by laptop/wmtp_daily/monday.")
    assert registered(monday.environment) == (1, {"champion": "1"})


def test_champion_that_was_taken_back_by_hand_does_not_return_by_night(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    promote(tuesday(monday).run(STRONGER, STRONG))
    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "champion", "1")
    # The next night finds the training of version 2 in the store, and compares it with version 1 again.
    before = tags_of(monday.environment, "2")
    wednesday = replace(tuesday(monday), name="wednesday").run(STRONGER, STRONG)
    result = promote(wednesday)
    assert (result["outcome"], result["version"]) == ("refused", "2")
    assert "Version 2 has been the champion before, and version 1 is now" in result["reason"]
    assert registered(monday.environment) == (2, {"champion": "1", "previous": "1"})
    assert tags_of(monday.environment, "2") == before, "the record of its promotion stays"

    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "champion", "2")
    returned = promote(wednesday)
    assert returned["outcome"] == "already champion"
    assert returned["reason"].endswith("promoted by laptop/wmtp_daily/tuesday.")


def test_champion_that_was_taken_away_does_not_return_by_night_either(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    with connection(monday.environment) as client:
        client.delete_registered_model_alias(NAME, "champion")
    result = promote(replace(monday, name="again").run(STRONG, WEAK))
    assert result["outcome"] == "refused"
    assert "and no version is now" in result["reason"]


def test_champion_by_hand_is_said_to_be_one_and_kept_in_mind(monday: Night) -> None:
    refused = monday.run(WEAK, WEAK)
    assert promote(refused)["outcome"] == "refused"
    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "champion", "1")
    result = promote(refused)
    assert result["outcome"] == "already champion"
    assert result["reason"].endswith("promoted by hand.")
    assert promote(tuesday(monday).run(STRONGER, WEAK))["outcome"] == "promoted"
    assert tags_of(monday.environment, "1")["promoted_by"] == "by hand"


def test_refused_candidate_that_is_judged_better_later_loses_the_alias_candidate(monday: Night) -> None:
    promote(monday.run(WEAK, WEAK))
    again = replace(monday, name="again")
    assert promote(again.run(STRONG, WEAK))["outcome"] == "promoted"
    assert registered(monday.environment) == (1, {"champion": "1"})


def test_alias_candidate_that_a_kill_left_on_the_champion_is_dropped(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    promote(run)
    with connection(monday.environment) as client:
        client.set_registered_model_alias(NAME, "candidate", "1")
    promote(run)
    assert registered(monday.environment) == (1, {"champion": "1"})


def test_evidence_about_a_champion_that_has_moved_is_stale(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    slow = tuesday(monday).run(STRONGER, STRONG)
    quick = replace(tuesday(monday), name="quick", weights="third", key="ghi")
    promote(quick.run(STRONGER, STRONG))
    result = promote(slow)
    assert result["outcome"] == "refused"
    assert "stale: it compares with version 1, and the champion is version 2 now" in result["reason"]
    assert registered(monday.environment) == (3, {"champion": "2", "previous": "1", "candidate": "3"})
    assert tags_of(monday.environment, "3")["gate.verdict"] == "stale"


def test_evidence_against_the_base_model_is_stale_once_there_is_a_champion(monday: Night) -> None:
    late = replace(monday, name="late", weights="second", key="def").run(STRONGER, WEAK)
    promote(monday.run(STRONG, WEAK))
    assert "compares with the base model" in promote(late)["reason"]


def test_forced_training_with_other_bytes_is_another_version_of_the_same_run(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    forced = replace(tuesday(monday), key="abc")
    monday.store.quarantine("train/abc", "forced")
    pinned = forced.champion
    assert pinned is not None
    # The champion's own artifact is gone from its key; the pinned one is a copy elsewhere.
    kept = replace(monday, name="kept", key="kept").run(STRONG, WEAK).artifact("train")
    assert kept is not None
    result = promote(replace(forced, champion=pinned.model_copy(update={"key": "kept"})).run(STRONGER, STRONG))
    assert (result["outcome"], result["version"]) == ("promoted", "2")
    with connection(monday.environment) as client:
        assert len({version.run_id for version in client.search_model_versions(f"name = '{NAME}'")}) == 1


def test_several_programs_a_problem_count_by_their_share(monday: Night) -> None:
    candidate = [[True, True, True, False]] * 40
    baseline = [[False, True, False, False]] * 40
    evidence = promote(monday.run(candidate, baseline))["evidence"]
    assert (evidence["candidate"], evidence["baseline"], evidence["lower_bound"]) == (0.75, 0.25, 0.5)
    assert (evidence["only_candidate"], evidence["only_baseline"]) == (40, 0)  # of the first programs


def test_models_that_were_asked_differently_are_not_compared(monday: Night) -> None:
    run = monday.run(STRONG, WEAK, prompt_sha256="other")
    with pytest.raises(DataError, match=r"not measured alike: prompt_sha256 is p in .* and other in"):
        promote(run)


def test_models_that_were_judged_on_other_problems_are_not_compared(monday: Night) -> None:
    run = monday.run(solved(*range(30)), solved(of=39))
    with pytest.raises(DataError, match=r"not measured alike: 1 problems are in one only: p39"):
        promote(run)


def test_outcomes_of_programs_that_nothing_kept_in_are_no_evidence_but_where_that_is_allowed(monday: Night) -> None:
    run = monday.run(STRONG, WEAK, protections=["resource limits"])
    with pytest.raises(DataError, match=r"was judged where nothing kept the programs in .*force: judge"):
        promote(run)
    judge = run.environment.judge.model_copy(update={"unsafe": True})
    allowed = replace(run, environment=run.environment.model_copy(update={"judge": judge}))
    assert promote(allowed)["outcome"] == "promoted"


def test_outcomes_of_another_model_are_no_evidence(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    monday.commit(run, "train", {"model/weights": b"trained since"}, {"steps": 4}, key="newer")
    with pytest.raises(DataError, match=r"does not speak of the model .*train/newer.*Clear generate\[0\]"):
        promote(run)


def test_champion_that_promote_did_not_register_is_named(monday: Night) -> None:
    with connection(monday.environment) as client:
        client.create_registered_model(NAME)
        client.create_model_version(NAME, source="/somewhere")
        client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(UserError, match=r"Version 1 of coder is the champion but has no tags"):
        champion(monday.environment, NAME)


def test_looking_for_a_champion_in_an_empty_environment_makes_nothing(tmp_path: Path) -> None:
    environment = Environment(store=str(tmp_path), mlflow_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    assert champion(environment, NAME) is None
    assert list(tmp_path.iterdir()) == []


def test_registry_that_is_down_is_reported_within_seconds(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    down = replace(
        run, environment=monday.environment.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{free_port()}"})
    )
    started = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        promote(down)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_killed_after_any_write_and_repeated_there_is_one_version_and_one_champion(
    monday: Night, tmp_path: Path
) -> None:
    promote(monday.run(STRONG, WEAK))
    run = tuesday(monday).run(STRONGER, STRONG)
    database, before = tmp_path / "mlflow.db", tmp_path / "before.db"
    copy_database(database, before)
    num_writes, is_killed = 0, True
    while is_killed:
        num_writes += 1
        copy_database(before, database)
        is_killed = is_killed_after(num_writes, run)
        if is_killed:
            assert promote(run)["version"] == "2"
        assert registered(monday.environment) == (2, {"champion": "2", "previous": "1"}), num_writes
        assert tags_of(monday.environment, "2")["gate.verdict"] == "passed"
        assert in_mlflow(monday.environment) == (2, 2), num_writes
    assert num_writes > 12


def is_killed_after(num_writes: int, run: Run) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, num_writes)
        try:
            promote(run)
        except Killed:
            return True
    return False


def in_mlflow(environment: Environment) -> tuple[int, int]:
    """Number of runs and of logged models."""
    with connection(environment) as client:
        (experiment,) = client.search_experiments(filter_string="name LIKE 'wmtp/%'")
        where = [experiment.experiment_id]
        return len(client.search_runs(where)), len(client.search_logged_models(where))
