"""Claims about the gates, one by one, on outcomes worked by hand; and that a night heeds them, on a real registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from nights import PULLED, RECIPE, STRONG, WEAK, Night, registered, tags_of, tuesday

from mlops_tasks.config.evaluation import Gate
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.metrics import mcnemar, paired_bootstrap
from mlops_tasks.registry import promotion
from mlops_tasks.registry.gates import GateOutcome, Measured, Speed, hold
from mlops_tasks.registry.promotion import promote
from mlops_tasks.stage import Run


def measured(candidate: Sequence[int], baseline: Sequence[int], **facts: Any) -> Measured:
    """Models that pass (1) or fail (0) the problems a0, a1, … of the first half and b0, b1, … of the second."""
    half = len(candidate) // 2
    ids = [f"a{n}" for n in range(half)] + [f"b{n}" for n in range(len(candidate) - half)]
    given: dict[str, Any] = {"model_bytes": 1, "speeds": (), "num_train": None, "num_dropped": None} | facts
    return Measured(
        candidate={id: [bool(passed)] for id, passed in zip(ids, candidate, strict=True)},
        baseline={id: [bool(passed)] for id, passed in zip(ids, baseline, strict=True)},
        compared_with="version 1",
        interval=paired_bootstrap(candidate, baseline, confidence=0.95, num_resamples=500, seed=0),
        mcnemar=mcnemar([bool(one) for one in candidate], [bool(one) for one in baseline]),
        seed=0,
        **given,
    )


ALL, NONE = [1] * 20, [0] * 20


def the(name: str, outcomes: Sequence[GateOutcome]) -> GateOutcome:
    return next(outcome for outcome in outcomes if outcome.name == name)


def test_without_further_limits_the_paired_comparison_alone_decides() -> None:
    (better,) = hold(Gate(), measured(ALL, NONE))
    assert (better.name, better.passed, better.value, better.limit, better.interval) == ("better", True, 1, 0, (1, 1))
    (worse,) = hold(Gate(), measured(NONE, ALL))
    assert not worse.passed
    assert "pass@1 is 0.0% against 100.0% of version 1 on 20 problems: -100.0 points" in worse.text


def test_few_flips_that_may_be_chance_are_named() -> None:
    (better,) = hold(Gate(), measured([1, 1, 1, 0, 0, 0], [0] * 6))
    assert better.value is not None and better.value > 0 and not better.passed
    assert better.text.endswith("But only 3 against 0 problems differ, which may be chance.")


@pytest.mark.parametrize(("limit", "passed"), [(0.5, True), (0.51, False)])
def test_the_least_score_is_of_the_candidate_alone(limit: float, passed: bool) -> None:
    outcome = the("score", hold(Gate(min_score=limit), measured([1] * 10 + [0] * 10, NONE)))
    assert (outcome.passed, outcome.value, outcome.limit) == (passed, 0.5, limit)


def test_a_named_set_is_held_to_its_own_bound_however_good_the_whole_is() -> None:
    # a0 to a9: eight won, two lost. b0 to b9: four lost.
    facts = measured([1] * 8 + [0] * 2 + [0] * 4 + [1] * 6, [0] * 8 + [1] * 2 + [1] * 10)
    parts = {"easy": {"ids": ["a*"]}, "hard": {"ids": ["b?"], "max_loss": 0.3}, "one": {"ids": ["b9"]}}
    gate = Gate.model_validate({"no_regression": parts, "num_resamples": 500})

    easy, hard, one = hold(gate, facts)[1:]

    assert [outcome.name for outcome in (easy, hard, one)] == [f"no_regression.{name}" for name in parts]
    assert (easy.passed, hard.passed, one.passed) == (True, False, True)
    assert one.value == 0.0 and hard.limit == -0.3 and hard.value is not None and hard.value < -0.3
    assert "On hard, 10 problems, pass@1 is 60.0% against 100.0%: -40.0 points" in hard.text
    tolerant = Gate.model_validate({"no_regression": {"hard": {"ids": ["b*"], "max_loss": 1}}})
    assert hold(tolerant, facts)[1].passed


def test_a_loss_that_may_be_there_is_refused_although_none_was_seen() -> None:
    facts = measured([1, 0] * 10, [0, 1] * 10)  # as many won as lost
    outcome = the("no_regression.all", hold(Gate.model_validate({"no_regression": {"all": {"ids": ["*"]}}}), facts))
    assert facts.interval.difference == 0 and not outcome.passed


def test_a_named_set_without_a_problem_is_an_error_that_says_what_they_are_called() -> None:
    gate = Gate.model_validate({"no_regression": {"strings": {"ids": ["strings-*"]}}})
    with pytest.raises(
        DataError, match=r"no_regression\.strings\.ids is strings-\*, which none of the 20 .*a0, a1, a2"
    ):
        hold(gate, measured(ALL, NONE))


@pytest.mark.parametrize(("size", "passed"), [(1_000_000, True), (1_000_001, False)])
def test_a_model_may_be_as_large_as_the_limit(size: int, passed: bool) -> None:
    outcome = the("size", hold(Gate(max_model_bytes=1_000_000), measured(ALL, NONE, model_bytes=size)))
    assert outcome.passed is passed and "takes 1.0 MB, and at most 1.0 MB" in outcome.text


def speed(per_second: float, *, num_tokens: int = 5000, num_resumed: int = 0, name: str = "gate") -> Speed:
    return Speed(name, per_second, num_tokens, num_resumed, "cpu")


@pytest.mark.parametrize(
    ("speeds", "passed", "value"),
    [
        ([speed(120), speed(70, name="report")], True, 120),  # something else ran during the second
        ([speed(99), speed(98)], False, 99),
        ([speed(500, num_tokens=999), speed(80)], False, 80),  # too short to tell
        ([speed(500, num_resumed=1), speed(80)], False, 80),
        ([speed(500, num_tokens=999)], False, None),
        ([], False, None),
    ],
)
def test_the_best_speed_that_was_measured_well_decides(speeds: list[Speed], passed: bool, value: float | None) -> None:
    outcome = the("latency", hold(Gate(min_tokens_per_second=100), measured(ALL, NONE, speeds=speeds)))
    assert (outcome.passed, outcome.value) == (passed, value)
    assert ("Nobody knows how fast" in outcome.text) is (value is None)


@pytest.mark.parametrize(
    ("counts", "passed", "value"), [((99, 1), True, 0.01), ((98, 2), False, 0.02), ((None, None), False, None)]
)
def test_training_problems_that_had_to_be_left_out_are_counted(
    counts: tuple[int | None, int | None], passed: bool, value: float | None
) -> None:
    facts = measured(ALL, NONE, num_train=counts[0], num_dropped=counts[1])
    outcome = the("contamination", hold(Gate(max_contamination=0.01), facts))
    assert (outcome.passed, outcome.value) == (passed, value)


# A night with more gates

GATES = {
    "min_score": 0.7, "no_regression": {"first": {"ids": ["p0?"]}}, "max_model_bytes": 8, "min_tokens_per_second": 100, "max_contamination": 0.1,
}  # fmt: skip


def with_gates(run: Run, gates: dict[str, Any]) -> Run:
    gate = RECIPE.gate.model_validate({**RECIPE.gate.model_dump(), **gates})
    recipe = RECIPE.model_copy(update={"gate": gate})
    return replace(run, spec=run.spec.model_copy(update={"recipe": recipe}))


def written(night: Night, candidate: list[list[bool]], baseline: list[list[bool]]) -> Run:
    """A night whose stages measured all that a gate may ask for."""
    run = night.run(candidate, baseline)
    night.commit(
        run,
        "pull_data",
        {"test.parquet": b"problems"},
        PULLED | {"num_train": 95, "num_dropped": 5},
        key=f"{night.name}-data",
    )
    for index, per_second in ((0, 90.0), (1, 110.0)):
        generated = run.artifact("generate", index)
        assert generated is not None
        metrics = {"tokens_per_second": per_second, "tokens": 2000, "num_resumed": 0, "device": "cpu"}
        files = {name: generated.path(name).read_bytes() for name in generated.names}
        inputs = generated.manifest["inputs"]
        night.commit(run, "generate", files, metrics, index=index, inputs=inputs, key=f"{night.name}-timed-{index}")
    return run


def test_every_gate_is_in_the_result_and_on_the_version(monday: Night) -> None:
    result = promote(with_gates(written(monday, STRONG, WEAK), GATES))
    assert result["outcome"] == "promoted"
    assert [(gate["name"], gate["passed"], gate["value"], gate["limit"]) for gate in result["gates"]][1:] == [
        ("score", True, 0.75, 0.7),
        ("no_regression.first", True, 0.0, -0.05),
        ("size", True, 5, 8),  # the bytes of "first"
        ("latency", True, 110.0, 100.0),
        ("contamination", True, 0.05, 0.1),
    ]
    assert json.loads(tags_of(monday.environment, "1")[promotion.GATES_TAG]) == json.loads(json.dumps(result["gates"]))
    assert result["reason"] == result["gates"][0]["text"]


def test_a_better_model_that_breaks_one_limit_is_refused_by_name(monday: Night) -> None:
    result = promote(with_gates(written(monday, STRONG, WEAK), GATES | {"max_model_bytes": 4}))
    assert (result["outcome"], registered(monday.environment)) == ("refused", (1, {"candidate": "1"}))
    assert result["evidence"]["passed"] is False and result["gates"][0]["passed"] is True
    assert result["reason"].endswith("+0.0. Gate size: The model takes 0.0 MB, and at most 0.0 MB is allowed.")
    assert tags_of(monday.environment, "1")["gate.verdict"] == "refused"


def test_gates_of_an_earlier_recipe_do_not_stay_on_the_version(monday: Night) -> None:
    promote(with_gates(written(monday, STRONG, WEAK), GATES | {"min_score": 0.8}))
    promote(replace(monday, name="again").run(STRONG, WEAK))
    (better,) = json.loads(tags_of(monday.environment, "1")[promotion.GATES_TAG])
    assert better["name"] == "better"


def test_a_model_that_is_champion_already_has_no_gates(monday: Night) -> None:
    promote(monday.run(STRONG, WEAK))
    again = promote(replace(tuesday(monday), weights="first", key="abc").run(STRONG, STRONG))
    assert (again["outcome"], again["gates"]) == ("already champion", [])
