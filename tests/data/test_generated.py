"""Generated problems: true, different, and held out for good."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache

import pytest

from mlops_tasks.config.sources import GeneratedData
from mlops_tasks.data.contamination import code_form, contaminated_pairs, text_form
from mlops_tasks.data.generated import FAMILIES, generate_problems
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.prompts import completion_text, shots_of
from mlops_tasks.data.protocols import protocol_named


@cache
def generated(seed: int = 0, num_train: int = 1500, noise: float = 0.0) -> list[Problem]:
    source = GeneratedData(
        kind="generated", num_train=num_train, num_validation=200, num_test=200, seed=seed, noise=noise
    )
    return generate_problems(source)


def passes(problem: Problem, program: str) -> bool:
    namespace: dict[str, object] = {}
    try:
        exec("\n".join([program, *problem.tests]), namespace)
    except Exception:
        return False
    return True


def test_every_solution_passes_its_tests() -> None:
    assert all(passes(problem, problem.solution) for problem in generated(noise=0.5))


def test_there_are_as_many_problems_of_each_split_as_asked_for() -> None:
    counts = Counter(problem.split for problem in generated())
    assert counts == {"prompt": 10, "test": 200, "validation": 200, "train": 1500}
    assert [problem.id for problem in generated()] == [str(number) for number in range(1, 1911)]


def test_no_two_problems_are_equal_in_text_or_code() -> None:
    assert len({text_form(problem) for problem in generated()}) == len(generated())
    assert len({code_form(problem) for problem in generated()}) == len(generated())


def test_held_out_problems_of_a_seed_are_no_training_problems_of_another() -> None:
    trained = [problem for problem in generated(seed=1, num_train=6000) if problem.split == "train"]
    held_out = [problem for problem in generated(seed=0) if problem.split != "train"]
    assert contaminated_pairs([*trained, *held_out]) == []


def test_settings_alone_decide_and_another_seed_gives_others() -> None:
    source = GeneratedData(kind="generated", num_train=50, num_validation=5, num_test=5)
    assert generate_problems(source) == generate_problems(source)
    texts = [{problem.prompt for problem in generated(seed=seed)} for seed in (0, 1)]
    assert len(texts[0] & texts[1]) < 0.2 * len(texts[0])


def test_more_training_problems_leave_the_others_as_they_were() -> None:
    assert generated(num_train=1600)[:1910] == generated()


def test_all_families_occur_about_equally_often() -> None:
    assert len(FAMILIES) >= 12
    counts = Counter(problem.entry_point.partition("_")[0] for problem in generated())
    assert set(counts) == {family.verb for family in FAMILIES} and len(FAMILIES) == len({one.verb for one in FAMILIES})
    assert min(counts.values()) > len(generated()) / len(FAMILIES) / 2


def test_constants_go_from_2_to_999() -> None:
    constants = [
        node.value
        for problem in generated()
        for node in ast.walk(ast.parse(problem.solution))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value != 0
    ]
    assert (min(constants), max(constants)) == (2, 999)


def test_the_tests_notice_a_wrong_constant() -> None:
    wrong = noticed = 0
    for problem in generated():
        for node in ast.walk(tree := ast.parse(problem.solution)):
            if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 9:
                node.value = node.value // 10 * 10 + (node.value + 3) % 10
                wrong += 1
                noticed += not passes(problem, ast.unparse(tree))
                break
    assert wrong > 500 and noticed / wrong > 0.75


def test_noise_is_a_comment_in_a_share_of_the_training_solutions() -> None:
    clean, noisy = generated(), generated(noise=0.5)
    changed = [(before, after) for before, after in zip(clean, noisy, strict=True) if before != after]
    assert {before.split for before, _ in changed} == {"train"}
    assert 0.45 < len(changed) / 1500 < 0.55
    assert all("    # " in after.solution and code_form(before) == code_form(after) for before, after in changed)


def test_both_prompt_forms_can_be_rendered_and_no_solution_holds_a_stop() -> None:
    prompts = [problem for problem in generated() if problem.split == "prompt"]
    assert [shot.id for shot in shots_of(prompts, "begin-done-3shot")] == ["2", "3", "4"]
    texts = [completion_text(problem, "docstring-0shot") for problem in generated(noise=0.5)]
    assert not any(stop in text for stop in protocol_named("docstring-0shot").stops for text in texts)


@pytest.mark.parametrize("takes", ["list", "number", "text"])
def test_each_kind_of_argument_has_several_families(takes: str) -> None:
    assert sum(family.takes == takes for family in FAMILIES) >= 4
