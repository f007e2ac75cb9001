"""HumanEval's format, CodeContests' fields, and tables of one's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import CodeContestsData, Columns, HumanEvalData, TableData
from mlops_tasks.data.problems import IoTest
from mlops_tasks.data.pull import pull
from mlops_tasks.data.sources import Reading, read_source
from mlops_tasks.data.sources.codecontests import several_answers
from mlops_tasks.data.sources.reading import split_of
from mlops_tasks.errors import UserError
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Store

STUB = 'def add(a, b):\n    """Add."""\n'
HUMANEVAL = {
    "task_id": "HumanEval/7", "prompt": STUB, "entry_point": "add", "canonical_solution": "    return a + b\n\n",
    "test": "\n\nMETADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
}  # fmt: skip
CONTEST = {
    "name": "1_A. Sum", "description": "Print the sum.\n\n## Categories\n\n- greedy\n\n## Testing\n\nRun it.", "difficulty": 7,
    "solutions": {"language": [2, 3], "solution": ["x = 1", "print(sum(map(int, input().split())))\r\n"]},
    "public_tests": {"input": ["1 2\r\n"], "output": ["3"]},
    "private_tests": {"input": ["3 4"], "output": ["7"]},
    "generated_tests": {"input": [], "output": []},
}  # fmt: skip
ROW = {"key": 5, "text": " Add. ", "code": "def f():\n    return 1", "checks": ["assert f() == 1"], "part": "train"}
COLUMNS = {"id": "key", "prompt": "text", "solution": "code", "tests": "checks", "split": "part"}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def humaneval(folder: Path, *records: Any, **settings: Any) -> Reading:
    path = write(folder, *records)
    return read_source(HumanEvalData(kind="humaneval", path=str(path), **settings), path)


def contests(folder: Path, *records: Any, **settings: Any) -> Reading:
    path = write(folder, *records)
    return read_source(CodeContestsData(kind="codecontests", path=str(path), **settings), path)


def table(path: Path, **columns: Any) -> Reading:
    return read_source(TableData(kind="table", path=str(path), columns=Columns(**COLUMNS | columns)), path)


def test_a_humaneval_line_becomes_code_to_go_on_with_and_one_test(tmp_path: Path) -> None:
    [problem] = humaneval(tmp_path, HUMANEVAL).problems
    assert (problem.id, problem.kind, problem.split, problem.entry_point) == (
        "HumanEval/7",
        "completion",
        "test",
        "add",
    )
    assert problem.prompt == STUB and problem.solution == STUB + "    return a + b\n"
    [test] = problem.tests
    scope: dict[str, Any] = {}
    exec(problem.solution + test, scope)
    with pytest.raises(AssertionError):
        exec(STUB + "    return a - b\n" + test, scope)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, r"line 2: field 'test' is null \(None\); expected a string"),
        ({"canonical_solution": "  return ("}, r"line 2: field 'canonical_solution' is no Python"),
        ({"task_id": "HumanEval/7"}, r"line 2: field 'task_id' is HumanEval/7, as in line 1"),
    ],
)
def test_a_bad_humaneval_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        humaneval(tmp_path, HUMANEVAL, HUMANEVAL | {"task_id": "HumanEval/8"} | changes)


def test_a_contest_line_becomes_a_script_with_all_its_tests(tmp_path: Path) -> None:
    [problem] = contests(tmp_path, CONTEST).problems
    assert (problem.id, problem.kind, problem.prompt) == ("1_A. Sum", "stdio", "Print the sum.")
    assert problem.solution == "print(sum(map(int, input().split())))\n"
    assert problem.io_tests == (IoTest(input="1 2\n", output="3"), IoTest(input="3 4", output="7"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"description": "Find x.\nIf there are several answers, print any of them."}, "it accepts several answers"),
        ({"solutions": {"language": [1], "solution": ["print 1"]}}, "it has no Python 3 solution"),
        ({"solutions": {"language": [3], "solution": ["print 1"]}}, "it has no Python 3 solution"),
    ],
)
def test_a_contest_that_can_judge_nobody_is_unsupported(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    reading = contests(tmp_path, CONTEST, CONTEST | {"name": "2_B. Other"} | changes)
    assert [problem.id for problem in reading.problems] == ["1_A. Sum"]
    assert [str(one)[: len(reason) + 12] for one in reading.unsupported] == [f"2_B. Other: {reason}"]


def test_published_parquet_is_read_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([CONTEST]), path)
    read = read_source(CodeContestsData(kind="codecontests", path=str(path)), path)
    assert read == contests(tmp_path, CONTEST)
    pq.write_table(pa.Table.from_pylist([HUMANEVAL]), path)
    assert read_source(HumanEvalData(kind="humaneval", path=str(path)), path) == humaneval(tmp_path, HUMANEVAL)


@pytest.mark.parametrize(
    "statement",
    [
        "If there are multiple solutions, you are allowed to print any of them.",
        "If there is more than one possible answer, you may output any.",
        "The numbers can be printed in any order.",
        "You can print each letter in any case (upper or lower).",
        "Print one integer - any positive integer value of x.",
        "Any valid answer will be accepted.",
    ],
)
def test_a_statement_says_that_it_accepts_several_answers(statement: str) -> None:
    assert several_answers(f"Some words before.\n{statement}\nInput") is not None


@pytest.mark.parametrize(
    "statement",
    [
        "If there are multiple optimal colors, print the color with the minimum number.",
        "Every monster can split in at least one way, and if it can split in multiple ways it chooses.",
        "Output the minimal number of drifts to be created in order for Ann to be able to get from any drift to any other.",
        "Print the answer.\nIn the example you can use any pair.",
    ],
)
def test_a_statement_with_one_answer_is_not_suspected(statement: str) -> None:
    assert several_answers(statement) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_tests": {"input": ["1"], "output": []}}, r"field 'public_tests' is something else; .* of one length"),
        ({"solutions": {"language": ["3"], "solution": ["x"]}}, r"field 'solutions' is something else"),
        ({"public_tests": {}, "private_tests": {}}, r"field 'public_tests' is without a test"),
        ({"description": ""}, r"field 'description' is empty"),
    ],
)
def test_a_bad_contest_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"line 1: {message}"):
        contests(tmp_path, CONTEST | changes)


def test_of_the_250_verified_contests_225_have_one_answer(codecontests_file: Path) -> None:
    reading = read_source(CodeContestsData(kind="codecontests", path=str(codecontests_file)), codecontests_file)
    assert (len(reading.problems), len(reading.unsupported)) == (225, 25)
    assert not any("## " in problem.prompt for problem in reading.problems)
    named = {one.id.partition(".")[0] for one in reading.unsupported}
    # By eye, from their statements.
    assert {"1169_B", "404_C", "1163_E"} <= named
    assert not {"246_D", "325_C", "1092_F", "217_A"} & named


def test_without_a_split_six_of_ten_are_learnt_from_and_an_id_always_falls_alike() -> None:
    counts = Counter(split_of(str(number), None) for number in range(5000))
    assert counts["train"] == pytest.approx(3000, abs=120) and counts["test"] == pytest.approx(1000, abs=90)
    assert split_of("1_A. Sum", None) == split_of("1_A. Sum", None)
    assert split_of("1_A. Sum", "test") == "test"


@pytest.mark.parametrize("form", ["lines", "list", "parquet"])
def test_a_table_of_any_form_is_read_by_its_columns(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, ROW)
    if form == "list":
        path.write_text(json.dumps([ROW]))
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([ROW]), path)
    [problem] = table(path).problems
    assert (problem.id, problem.prompt, problem.split, problem.tests) == ("5", "Add.", "train", ("assert f() == 1",))
    assert problem.kind == "asserts"


def test_a_table_may_count_rows_hold_one_text_of_tests_and_name_no_split(tmp_path: Path) -> None:
    path = write(tmp_path, ROW | {"checks": "assert f() == 1\nassert f() > 0"}, ROW)
    problems = table(path, id=None, split=None).problems
    assert [(one.id, one.split, len(one.tests)) for one in problems] == [("1", "test", 1), ("2", "test", 1)]


def test_a_table_of_scripts_has_inputs_and_outputs(tmp_path: Path) -> None:
    row = {"text": "Echo.", "code": "print(input())", "in": ["a", "b"], "out": ["a", "b"]}
    path = write(tmp_path, row)
    [problem] = table(path, id=None, split=None, tests=None, inputs="in", outputs="out").problems
    assert problem.io_tests == (IoTest(input="a", output="a"), IoTest(input="b", output="b"))
    with pytest.raises(UserError, match=r"field 'out' is 1 texts; expected as many as 'in' has, 2"):
        table(write(tmp_path, row | {"out": ["a"]}), id=None, split=None, tests=None, inputs="in", outputs="out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 3}, r"field 'text' is a whole number \(3\); expected a string"),
        ({"key": None}, r"field 'key' is null"),
        ({"part": "holdout"}, r"field 'part' is 'holdout'; expected one of prompt, train"),
        ({"checks": ["assert ("]}, r"field 'checks' is no Python"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"line 1: {message}"):
        table(write(tmp_path, ROW | changes))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"field 'question' is missing; found key, text, code, checks, part"):
        table(write(tmp_path, ROW), prompt="question")


def test_a_parquet_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"problems\.parquet is no whole Parquet table"):
        table(path)


@pytest.mark.parametrize("columns", [{}, {"tests": "t", "inputs": "i", "outputs": "o"}, {"inputs": "i"}])
def test_columns_name_exactly_one_kind_of_tests(columns: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either tests, or inputs and outputs, must name a column"):
        Columns(**columns)


def test_a_snapshot_lists_what_is_unsupported_and_keeps_scripts(tmp_path: Path, environment: Environment) -> None:
    path = write(tmp_path, CONTEST, CONTEST | {"name": "2_B.", "description": "Print any root."})
    source = CodeContestsData(kind="codecontests", path=str(path)).model_dump()
    out = tmp_path / "out"
    out.mkdir()
    config = {"data": source, "on_contamination": "refuse"}
    made = pull(Attempt(config, {}, out, environment, Store.open(environment.store), "k", "pull/k"))
    assert (made["num_test"], made["num_unsupported"], made["num_train"]) == (1, 1, 0)
    assert json.loads((out / "unsupported.json").read_text()) == {"2_B.": 'it accepts several answers: "Print any"'}
