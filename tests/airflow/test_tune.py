"""The DAG `wmtp_tune`, as a laptop runs it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Place

TINY = {
    "name": "tiny",
    "data": {"source": {"kind": "generated", "num_train": 40, "num_validation": 6, "num_test": 4}},
    "model": {"name": "tiny-coder", "source": {"kind": "random", "hidden_size": 32, "num_layers": 1}},
    "text": {"max_length": 256},
    "scoring": {"scorer": "position"},
    "train": {"num_heads": 2, "steps": 4, "batch_size": 8, "learning_rate": 1.0e-4},
    "evaluation": {"max_new_tokens": 8},
    "tuning": {
        "num_trials": 2,
        "num_problems": 3,
        "objectives": ["validation_loss"],
        "repeats": 2,
        "space": {"train.learning_rate": {"kind": "float", "low": 1.0e-4, "high": 1.0e-2}},
    },
}  # fmt: skip


@pytest.mark.slow
def test_a_study_ends_with_a_recipe_that_a_night_can_learn(place: Place) -> None:
    recipe = place.folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    given = json.loads(place.environment_file.read_text())
    place.environment_file.write_text(json.dumps(given | {"tune": {"storage": "sqlite:///optuna.db"}}))

    code, said = place.airflow("wmtp_tune", {"recipe": str(recipe)})

    assert code == 0, said
    assert started(said)[-3:] == ["search[0]", "select[0]", "conclude[0]"]
    (run,) = (place.folder / "store/runs/toys/wmtp_tune").glob("*")
    concluded = json.loads((run / "conclude.json").read_text())
    assert concluded["detail"]["outcome"] == "adopted", concluded["detail"]["reason"]
    assert (run / "report.html").read_text().startswith("<!doctype html>")

    code, said = place.airflow("wmtp_tune", {"recipe": str(recipe)})

    assert code == 0, said
    # All of it is a hit, and only what always runs is run.
    assert started(said) == ["plan", "conclude[0]"]

    code, said = place.airflow("evaluate_champion", {"recipe": "tuned:tiny"})

    assert code == 0 and "tiny-coder has no champion yet" in said, said


def started(said: str) -> list[str]:
    return re.findall(r"([\w\[\]]+): starts", said)
