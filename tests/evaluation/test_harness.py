"""What happens to one program; its confinement and its end are in test_sandbox."""

from typing import Any

import pytest

from mlops_tasks.evaluation.harness import MESSAGE_LENGTH, run_program


def reports_of(solution: str, *tests: str, setup: str = "") -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    run_program(solution, setup, list(tests), reports.append)
    return reports


def test_parts_run_in_order_and_each_is_reported() -> None:
    reports = reports_of("class Node: pass", "assert node.value == 3", setup="node = Node(); node.value = 3")
    assert [(report["part"], report["verdict"]) for report in reports] == [
        ("solution", "passed"),
        ("setup", "passed"),
        ("test", "passed"),
    ]


def test_every_test_runs_after_one_that_fails() -> None:
    reports = reports_of("def f(x): return x", "assert f(1) == 2", "assert f(2) == 2", "assert g(3) == 3")
    assert [report["verdict"] for report in reports] == ["passed", "passed", "failed", "passed", "error"]
    assert reports[-1]["message"] == "NameError: name 'g' is not defined"


@pytest.mark.parametrize(
    ("solution", "verdict", "message"),
    [
        ("def f(:", "error", "SyntaxError: invalid syntax"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("assert False, 'my own check'", "error", "AssertionError: my own check"),
        ("import sys; sys.exit(0)", "crashed", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "crashed", "KeyboardInterrupt"),
        ("raise MemoryError('much')", "crashed", "MemoryError"),
        ("x = '\\0'\n\0", "error", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_solution_that_does_not_load_ends_the_program(solution: str, verdict: str, message: str) -> None:
    (report,) = reports_of(solution, "assert True")
    assert (report["part"], report["verdict"]) == ("solution", verdict)
    assert report["message"].startswith(message.split(":", maxsplit=1)[0])
    if "null bytes" not in message:
        assert report["message"] == message


def test_an_assertion_inside_the_solution_is_no_wrong_answer() -> None:
    reports = reports_of("def f(x):\n    assert x > 5\n    return x", "assert f(1) == 1", "assert f(6) == 7")
    assert [report["verdict"] for report in reports[2:]] == ["error", "failed"]


def test_an_assertion_in_a_check_of_the_setup_is_a_wrong_answer() -> None:
    reports = reports_of("def f(x): return x", "check(f)", setup="def check(f):\n    assert f(1) == 2")
    assert reports[-1]["verdict"] == "failed"


def test_an_exception_that_cannot_be_shown_is_still_reported() -> None:
    solution = "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(): raise Odd"
    assert reports_of(solution, "f()")[-1]["verdict"] == "error"
    assert len(reports_of("raise ValueError('x' * 10**6)")[0]["message"]) == MESSAGE_LENGTH


def test_a_program_is_a_module_that_can_be_found_and_is_not_main() -> None:
    solution = """
from dataclasses import dataclass
@dataclass
class P:
    x: "int"
if __name__ == "__main__":
    raise SystemExit
"""
    assert reports_of(solution, "assert P(1) == P(1)")[-1]["verdict"] == "passed"


def test_annotations_of_a_program_are_evaluated_as_in_a_file_of_its_own() -> None:
    assert reports_of("def f(x: int): ...", "assert f.__annotations__['x'] is int")[-1]["verdict"] == "passed"
