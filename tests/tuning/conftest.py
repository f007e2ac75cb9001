"""Studies of a recipe so small that a trial takes about a second."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from postgres_server import address, postgres

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 8}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "random"},
    "train": {"num_heads": 2, "steps": 4, "batch_size": 8, "learning_rate": 0.003, "validate_every_steps": 1},
    "evaluation": {"max_new_tokens": 8, "gate": {"split": "test", "limit": 6}, "report": {"split": "test", "skip": 6}},
    "tuning": {
        "num_trials": 4,
        "num_problems": 3,
        "objectives": ["validation_loss"],
        "repeats": 2,
        "space": {
            "train.learning_rate": {"kind": "float", "low": 1.0e-4, "high": 1.0e-2, "log": True},
            "weighting.kind": {"kind": "choice", "choices": ["soft", "select"]},
            "weighting.temperature": {"kind": "float", "low": 0.3, "high": 1.0, "when": {"weighting.kind": "soft"}},
            "weighting.top_share": {"kind": "float", "low": 0.2, "high": 0.8, "step": 0.2, "when": {"weighting.kind": "select"}},
            "train.num_heads": {"kind": "integer", "low": 1, "high": 2},
        },
    },
}  # fmt: skip


@pytest.fixture
def tree() -> dict[str, Any]:
    return copy.deepcopy(RECIPE)


@pytest.fixture
def place(tmp_path: Path, mlflow_database: Path) -> Path:
    """A folder with the recipe, and an environment that keeps all of it there."""
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    environment = {
        "store": "store", "mlflow_uri": "sqlite:///mlflow.db", "mlflow_artifacts": "mlflow", "tune": {"storage": "sqlite:///optuna.db"}
    }  # fmt: skip
    (tmp_path / "environment.yaml").write_text(yaml.safe_dump(environment))
    return tmp_path


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    with postgres() as (server, _):
        yield address(server)
