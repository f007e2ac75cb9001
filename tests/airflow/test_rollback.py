"""The DAG `model_rollback`: its form, what it starts, and a run of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from nights import NAME, registered, tags_of, three_versions
from wmtp import rollback, rollback_params
from wmtp.local import LocalRollback
from wmtp.trigger import Rollback

from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import UserError
from mlops_tasks.registry import moves
from mlops_tasks.registry.moves import Order
from mlops_tasks.store import Store

if TYPE_CHECKING:
    from conftest import Place


def test_the_form_is_typed_and_described_and_asks_for_model_and_reason() -> None:
    form = rollback_params()
    assert {name: param.schema["type"] for name, param in form.items()} == {
        "model": "string",
        "version": ["null", "string"],
        "reason": "string",
    }
    assert all(param.description for param in form.values())
    assert form["version"].resolve() is None
    assert form["version"].resolve("3") == "3"
    for name in ("model", "reason"):
        with pytest.raises(ParamValidationError, match="No value passed"):
            form[name].resolve()
        with pytest.raises(ParamValidationError, match="should be non-empty"):
            form[name].resolve("")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "coder"}, "reason is .*Field required.*It may say model, version, reason"),
        ({"model": "coder", "reason": "x", "to": "3"}, "to is '3': Extra inputs"),
    ],
)
def test_a_conf_that_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rollback.of(given)


def test_the_process_is_told_all_that_the_form_says() -> None:
    operator = rollback("roll_back")
    assert isinstance(operator, LocalRollback)
    command = operator.command(Rollback(model="-coder", version="3", reason="a b"), "anna (dag/run)")
    assert command[:2] == ["registry", "rollback"]
    assert command[3:] == ["--reason=a b", "--by=anna (dag/run)", "--once", "--json", "--to=3", "--", "-coder"]
    assert "--to=" not in " ".join(operator.command(Rollback(model="coder", reason="a b"), "anna"))


@pytest.mark.slow
def test_a_run_rolls_back_once_and_says_why_it_does_not_do_so_twice(place: Place, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, place.folder / "mlflow.db")
    environment = load_environment(place.environment_file)
    three_versions(environment)
    moves.promote(environment, NAME, Order("promote", "2", by="night", reason="better"))

    code, text = place.airflow("model_rollback", {"model": NAME, "reason": "writes nonsense"})

    assert code == 0, text
    assert registered(environment)[1] == {"champion": "1", "previous": "2"}
    assert tags_of(environment, "2")["rolled_back_reason"] == "writes nonsense"
    move = moves.history(Store.of(environment), NAME)[0]
    assert move.action == "rollback" and "(model_rollback/manual__" in move.by

    code, text = place.airflow("model_rollback", {"model": NAME, "reason": "writes nonsense"})

    assert code != 0
    assert "The previous version 2 of coder was rolled back itself" in text
    assert registered(environment)[1] == {"champion": "1", "previous": "2"}
