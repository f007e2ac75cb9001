"""Signs that a program reads its answer off a shown test."""

import json
from pathlib import Path

import pytest

from mlops_tasks.config.sources import CodeContestsData
from mlops_tasks.data.sources import read_source
from mlops_tasks.evaluation.answers import examples_in, reads_answer, reads_output


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert area(3, 7) == 21", "def area(a, b):\n    return 21"),
        (
            "assert area(3, 7) == 21",
            "def area(a, b):\n    x = a * b\n    if a == 3:\n        return 21\n    return x + 1",
        ),
        ("assert area(3, 7) == 21", "area = lambda a, b: 21"),
        ("assert f([1, 2, 3]) == [3, 2, 1]", "def f(x):\n    result = [3, 2, 1]\n    return result"),
        ("assert f([1, 2, 3]) == (3, 2, 1)", "def f(x):\n    return [3, 2, 1]"),
        ("assert set(f('a')) == set(['a', 'b', 'c'])", "def f(x):\n    return {'c', 'b', 'a'}"),
        ("assert f('x') == {'a': 1, 'b': 2}", "def f(x):\n    return {'b': 2, 'a': 1}"),
        ("assert is_even(4) == True", "def is_even(n):\n    return True"),
        ("assert is_even(4)", 'def is_even(n):\n    """Tell."""\n    return True'),
        ("assert not is_even(5)", "def is_even(n):\n    return False"),
        (
            "assert kind('python') == 'word'",
            "def kind(x):\n    if x == 'python':\n        return 'word'\n    return ''",
        ),
        ("assert kind('python') == 'word'", "def kind(x):\n    return 'word'"),
        ("assert half(1) == 0.5", "def half(x):\n    return 0.5 if x == 1 else x / 3"),
    ],
)
def test_a_copied_answer_is_noticed(test: str, program: str) -> None:
    assert reads_answer(program, [test])


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert area(3, 7) == 21", "def area(a, b):\n    return a * b"),
        ("assert area(3, 7) == 21", "def area(a, b):\n    return a * b  # 21\nassert area(3, 7) == 21"),
        ("assert area(3, 7) == 21", 'def area(a, b):\n    """area(3, 7) == 21"""\n    return a * b'),
        ("assert is_even(4) == True", "def is_even(n):\n    if n % 2 == 0:\n        return True\n    return False"),
        ("assert kind(4) == 'even'", "def kind(n):\n    if n % 2:\n        return 'odd'\n    return 'even'"),
        ("assert first([5, 6]) == 5", "def first(x):\n    if len(x) < 5:\n        return x[0]\n    return 5"),
        ("assert f(1) == 1", "def f(n):\n    if n == 1:\n        return 1\n    return n * f(n - 1)"),
        ("assert area(3, 7) == 21", "def area(a, b: return 21"),
        ("assert f(20) == 10", "def f(n):\n    return n // 2 % 10"),
    ],
)
def test_a_program_that_works_its_answer_out_is_not_blamed(test: str, program: str) -> None:
    assert not reads_answer(program, [test])


def test_the_examples_of_a_docstring_are_tests_too() -> None:
    prompt = 'def add(a, b):\n    """Add.\n    >>> add(1, 20)\n    21\n    """\n'
    assert examples_in(prompt) == ["assert add(1, 20) == 21"]
    assert reads_answer(prompt + "    return 21\n", examples_in(prompt))
    assert not reads_answer(prompt + "    return a + b\n", examples_in(prompt))
    assert examples_in('def f():\n    """\n    >>>f()\n    1\n    """') == examples_in("def f(:") == []


def test_only_a_shown_test_counts() -> None:
    assert not reads_answer("def f(x):\n    return 21", [])
    assert not reads_answer("def f(x):\n    return 21", ["assert f(3) == 22"])


def test_published_solutions_are_hardly_ever_blamed(mbpp_folder: Path) -> None:
    rows = [json.loads(line) for line in (mbpp_folder / "mbpp.jsonl").read_text().splitlines()]
    blamed = [row["task_id"] for row in rows if reads_answer(row["code"], row["test_list"][:1])]
    assert len(blamed) <= 2


@pytest.mark.parametrize(
    ("output", "script"),
    [
        ("3 1 2", "n = input()\nprint('3 1 2')"),
        ("3 1 2", "n = input()\nprint('3 1\\n2')"),
        ("21", "a = int(input())\nprint(21 if a == 3 else a)"),
        ("0.5", "a = input()\nprint(0.5)"),
        ("YES", "print('YES')"),
        ("7", "print(7)"),
    ],
)
def test_a_script_that_holds_a_shown_output_is_noticed(output: str, script: str) -> None:
    assert reads_output(script, [output])


@pytest.mark.parametrize(
    ("output", "script"),
    [
        ("YES", "n = int(input())\nprint('YES' if n % 2 else 'NO')"),
        ("7", "import sys\nprint(7 if sys.stdin.read() else 0)"),
        ("21", "a, b = map(int, input().split())\nprint(a * b)  # 21"),
        ("3 1 2", "print('3 1 2'"),
        ("nan", "print(input(), 'nan')"),
    ],
)
def test_a_script_that_works_its_output_out_is_not_blamed(output: str, script: str) -> None:
    assert not reads_output(script, [output])


def test_published_scripts_are_hardly_ever_blamed(codecontests_file: Path) -> None:
    source = CodeContestsData(kind="codecontests", path=str(codecontests_file))
    problems = read_source(source, codecontests_file).problems
    blamed = [
        problem.id
        for problem in problems
        if reads_output(problem.solution, [" ".join(test.output.split()) for test in problem.io_tests[:2]])
    ]
    assert len(blamed) <= 5, blamed
