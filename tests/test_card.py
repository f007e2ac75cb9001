"""Claims about a model's card: what it says of a night's candidate, and that it is where people look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from nights import NAME, RECIPE, STRONG, STRONGER, WEAK, Night, tags_of

from mlops_tasks.config.recipe import Recipe
from mlops_tasks.config.sources import FolderModel, HubModel
from mlops_tasks.registry.card import Card
from mlops_tasks.registry.promotion import promote
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact
from mlops_tasks.tracking import Logged, connection

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

COMPARED = "pass@1 is 75.0% against 25.0% of the base model."
CHECKOUT = Path(__file__).resolve().parents[1]


def card_of(run: Run, **changes: Any) -> Card:
    train = run.artifact("train")
    assert train is not None
    return replace(Card(run, train, version="7", compared=COMPARED), **changes)


def with_recipe(run: Run, **parts: Any) -> Run:
    changed = Recipe.model_validate(RECIPE.model_dump() | parts)
    return replace(run, spec=run.spec.model_copy(update={"recipe": changed}))


def row(text: str, *cells: str) -> list[str]:
    """The cells of the one table row that begins with these."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    (found,) = (line for line in lines if tuple(line[: len(cells)]) == cells)
    return found


def test_the_front_matter_is_what_the_hub_reads(monday: Night) -> None:
    text = card_of(monday.run(STRONG, WEAK)).readme()
    card = ModelCard(text)
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["google-research-datasets/mbpp"])
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert (card.data.model_name, card.data.base_model) == (NAME, None)
    gate, report = card.data.eval_results or []
    assert (gate.metric_type, gate.metric_value, gate.dataset_split) == ("pass@1", 0.75, "validation")
    assert (report.dataset_type, report.dataset_split) == ("google-research-datasets/mbpp", "test")
    # Wilson: (0.75 + z²/80 ± z·sqrt(0.75·0.25/40 + z²/6400)) / (1 + z²/40) with z = 1.96
    assert gate.metric_args == {
        "protocol": "docstring-0shot", "prompt_sha256": "p", "num_problems": 40, "num_samples": 1, "temperature": 0.0,
        "top_p": 1.0, "max_new_tokens": 256, "interval_95": [0.5981, 0.8581],
    }  # fmt: skip
    assert text.startswith("---\n") and card.text.strip().startswith(f"# {NAME}, version 7")


def test_the_card_tells_what_the_model_is_made_of_and_how_it_was_measured(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    text = card_of(run).readme()
    assert row(text, "train and evaluate") == ["train and evaluate", "mbpp", "CC-BY-4.0", "144"]
    assert "Splits: 64 train, 40 validation, 40 test, 0 prompt." in text
    assert "its licence: apache-2.0." in text
    assert row(text, "steps")[1] == "4 of 64 problems"
    assert row(text, "devices")[1] == "1 ranks, 3,600 device-seconds"
    assert row(text, "validation loss of head 1, nats a token")[1] == "2.000 before, 1.500 after"
    assert row(text, "gate", "this model")[2:5] == ["40", "0.750", "0.598 to 0.858"]
    assert row(text, "gate", "the base model")[2:5] == ["40", "0.250", "0.142 to 0.402"]
    assert f"On the gate set: {COMPARED}" in text
    assert run.spec.digest in text
    train, data = run.artifact("train"), run.artifact("pull_data")
    assert train is not None and data is not None
    assert row(text, f"`{train.prefix}`")[1:] == [f"`{train.digest[:12]}`", "0.1.0"]
    assert row(text, f"`{data.prefix}`")[1] == f"`{data.digest[:12]}`"


@pytest.mark.parametrize(("is_used", "algorithm"), [(True, "critic"), (False, "uniform")])
def test_a_refused_critic_is_nowhere_called_the_algorithm(monday: Night, is_used: bool, algorithm: str) -> None:
    run = with_recipe(monday.run(STRONG, WEAK), scoring={"scorer": "critic"}, weighting={"kind": "soft"})
    verdict = "critic used: 0.2" if is_used else "critic refused, every token weighs 1"
    monday.commit(run, "score", {}, {"critic_is_used": is_used, "critic_verdict": verdict})
    text = card_of(run).readme()
    assert f"token-weights-{algorithm}" in (ModelCard(text).data.tags or [])
    assert f"with `{algorithm}` token weights" in text
    assert row(text, "critic")[1] == verdict
    assert (row(text, "token weights")[1] == "all 1") is not is_used
    assert promote(run)["outcome"] == "promoted"
    assert tags_of(monday.environment, "1")["algorithm"] == algorithm


def test_what_it_cost_is_told_in_money_only_where_prices_are_set(monday: Night) -> None:
    text = card_of(monday.run(STRONG, WEAK)).readme()
    assert row(text, "all that it was made from")[1:] == ["3", "10,800", "no price is set"]
    assert row(text, "attempts of these that failed or were stopped")[1:] == ["0", "0", "no price is set"]
    priced = monday.environment.model_copy(update={"prices": {"default": 2.0, "train": 10.0}, "currency": "EUR"})
    paid = replace(monday, environment=priced, name="paid", weights="other", key="def").run(STRONG, WEAK)
    stopped = {"device_seconds": 1800.0, "cost": 5.0, "error": "Interrupted"}
    paid.store.write_json("train/def/failures/first.json", stopped)
    paid.store.write_json("train/def/failures/second.json", {"kind": "non-determinism"})
    text = card_of(paid).readme()
    assert row(text, "all that it was made from")[1:] == ["3", "10,800", "14.00 EUR"]
    assert row(text, "its evaluation")[1:] == ["4", "14,400", "8.00 EUR"]
    assert row(text, "attempts of these that failed or were stopped")[1:] == ["1", "1,800", "5.00 EUR"]


@pytest.mark.parametrize(
    ("source", "words", "base_model"),
    [
        (HubModel(kind="hub", repo="own/base"), "[own/base](https://huggingface.co/own/base) at commit `model-digest`", "own/base"),
        (FolderModel(kind="folder", path="/secret/place/base"), "the model `base` (digest `model-digest`)", None),
    ],
)  # fmt: skip
def test_the_base_is_named_without_the_place_where_it_lay(
    monday: Night, source: HubModel | FolderModel, words: str, base_model: str | None
) -> None:
    run = with_recipe(monday.run(STRONG, WEAK), model={"name": NAME, "source": source.model_dump()})
    text = card_of(run).readme()
    assert words in text and "/secret/" not in text
    assert ModelCard(text).data.base_model == base_model


def test_what_nobody_knows_is_not_said(monday: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics: Mapping[str, Any] = {
        "pull_model": {"licence": None},
        "pull_data": {"origins": [{"source": "a|b\nc", "licence": "unknown", "num_problems": 144}]},
    }
    run = monday.run(STRONG, WEAK)
    known = Artifact.metrics.fget  # type: ignore[attr-defined]

    def told(artifact: Artifact) -> dict[str, Any]:
        task = artifact.manifest["key"].split("-", 1)[-1].rpartition("-")[0]
        return {**known(artifact), **metrics.get(task, {})}

    monkeypatch.setattr(Artifact, "metrics", property(told))
    text = card_of(run).readme()
    data = ModelCard(text).data
    assert (data.license, data.datasets) == (None, None)
    assert "its licence: not declared beside its weights." in text
    assert row(text.replace("\\|", "/"), "train and evaluate")[1:3] == ["a/b c", "unknown"]


def test_a_training_from_before_trainable_parameters_were_counted_has_a_card(
    monday: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = monday.run(STRONG, WEAK)
    assert row(card_of(run).readme(), "trainable")[1] == "full: 640 parameters, 100 % of all"
    # What a training wrote then had all of today's metrics but these.
    known = Artifact.metrics.fget  # type: ignore[attr-defined]
    later = ("num_trainable", "trainable_share")
    monkeypatch.setattr(
        Artifact,
        "metrics",
        property(lambda one: {name: value for name, value in known(one).items() if name not in later}),
    )
    text = card_of(run).readme()
    assert row(text, "trainable")[1] == "full"
    assert row(text, "steps")[1] == "4 of 64 problems"
    assert promote(run)["outcome"] == "promoted"


def test_heads_are_loaded_only_where_there_are_some(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    assert "MtpModel.with_saved_heads" in card_of(run).readme()
    plain = with_recipe(run, train={"num_heads": 1, "steps": 4})
    assert "MtpModel" not in card_of(plain).readme() and "one head" in card_of(plain).readme()


def test_the_short_form_leads_to_the_rest_and_fits_mlflow(monday: Night) -> None:
    run = monday.run(STRONG, WEAK)
    text = card_of(run).description(Logged("3", "run9", "m-1", "unused"))
    assert COMPARED in text and row(text, "gate")[1:4] == ["40", "0.750", "0.598 to 0.858"]
    assert "(#/experiments/3/runs/run9)" in text and "(#/experiments/3/models/m-1)" in text
    assert f"{run.store.uri}/train/abc" in text
    assert len(text) < 3000, "MLflow's column holds 5000 characters"


def in_mlflow(night: Night) -> tuple[str, str]:
    """Card and description of the only version."""
    with connection(night.environment) as client:
        version = client.get_model_version(NAME, "1")
        folder = Path(version.source.removeprefix("file://") if version.source.startswith("file:") else "")
        if not folder.is_dir():
            folder = Path(
                client.get_logged_model(version.source.rpartition("/")[2]).artifact_location.removeprefix("file://")
            )
        return (folder / "artifacts/model/README.md").read_text(), str(version.description)


def test_the_card_lies_beside_the_weights_and_in_short_on_the_version(monday: Night) -> None:
    run = monday.run(WEAK, WEAK)
    refused = promote(run)
    text, short = in_mlflow(monday)
    assert refused["reason"] in text and refused["reason"] in short
    assert f"# {NAME}, version 1" in text and f"models:/{NAME}/1" in text
    train = run.artifact("train")
    assert train is not None and "model/README.md" not in train.names, "its key would make the model anew"
    promote(run)
    assert in_mlflow(monday) == (text, short), "the same night says the same"


def test_the_same_model_evaluated_anew_has_the_new_card(monday: Night) -> None:
    promote(monday.run(WEAK, WEAK))
    promoted = promote(replace(monday, name="again").run(STRONGER, WEAK))
    text, short = in_mlflow(monday)
    assert promoted["version"] == "1"
    assert row(text, "gate", "this model")[3] == row(short, "gate")[2] == "0.950"


def test_the_card_in_the_docs_is_one(monday: Night) -> None:
    page = (CHECKOUT / "docs" / "model_card.md").read_text()
    ours = card_of(monday.run(STRONG, WEAK)).readme()
    assert ModelCard(page).data.eval_results
    assert [line for line in page.splitlines() if line.startswith("#")][1:] == [
        line for line in ours.splitlines() if line.startswith("#")
    ][1:]
