"""Reading MBPP's formats: what is read, and what is said about a bad file."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlops_tasks.data.problems import Problem
from mlops_tasks.data.sources import records
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.errors import UserError


def record(task_id: int = 601, **changes: Any) -> dict[str, Any]:
    """A record as in mbpp.jsonl; a change to None takes the field out."""
    values = {
        "task_id": task_id,
        "text": "Write a function to add one.",
        "code": "def add_one(x):\r\n    return x + 1",
        "test_list": ["assert add_one(1) == 2", "assert add_one(0) == 1"],
        "test_setup_code": "",
        "challenge_test_list": [],
    } | changes
    return {name: value for name, value in values.items() if value is not None}


def write_lines(folder: Path, *records: Any) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def read(folder: Path, *records: Any) -> list[Problem]:
    return read_mbpp(write_lines(folder, *records))


def test_published_mbpp_has_974_problems_in_the_official_splits(mbpp_folder: Path) -> None:
    problems = read_mbpp(mbpp_folder / "mbpp.jsonl")
    assert Counter(problem.split for problem in problems) == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    assert {(problem.source, problem.licence) for problem in problems} == {("mbpp", "CC-BY-4.0")}
    assert [problem.id for problem in problems if problem.setup] == ["367", "927"]
    assert not any("\r" in part for problem in problems for part in (problem.solution, problem.setup, *problem.tests))


def test_published_sanitized_mbpp_has_427_problems(mbpp_folder: Path) -> None:
    problems = read_mbpp(mbpp_folder / "sanitized-mbpp.json")
    assert Counter(problem.split for problem in problems) == {"prompt": 7, "test": 257, "validation": 43, "train": 120}
    assert sum(problem.setup == "import math" for problem in problems) == 13
    assert {problem.source for problem in problems} == {"mbpp-sanitized"}


def test_a_line_becomes_a_problem_with_unix_line_ends(tmp_path: Path) -> None:
    [problem] = read(tmp_path, record(test_setup_code="a = 1\r\nb = 2"))
    assert problem == Problem(
        id="601",
        prompt="Write a function to add one.",
        solution="def add_one(x):\n    return x + 1",
        tests=("assert add_one(1) == 2", "assert add_one(0) == 1"),
        setup="a = 1\nb = 2",
        entry_point="add_one",
        split="train",
        source="own",
        licence="unknown",
    )


def test_a_list_of_sanitized_records_is_read_and_imports_become_set_up(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    values: dict[str, Any] = {
        "source_file": "notes.ipynb",
        "prompt": "Add.",
        "test_imports": ["import math", "import re"],
    }
    path.write_text(json.dumps([record(text=None, **values)], indent=1))
    [problem] = read_mbpp(path)
    assert (problem.prompt, problem.setup) == ("Add.", "import math\nimport re")


def test_blank_lines_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("\n" + json.dumps(record()) + "\n\n", encoding="utf-8-sig")
    assert len(read_mbpp(path)) == 1


def test_ones_own_problems_name_their_split_source_and_licence(tmp_path: Path) -> None:
    [problem] = read(tmp_path, record(90_001, split="train", source="house", licence="MIT"))
    assert (problem.id, problem.split, problem.source, problem.licence) == ("90001", "train", "house", "MIT")


def test_a_split_of_its_own_overrides_the_official_one(tmp_path: Path) -> None:
    assert [one.split for one in read(tmp_path, record(11, split="train"), record(12))] == ["train", "test"]


def test_the_name_of_the_file_is_not_in_what_was_read(tmp_path: Path) -> None:
    one = write_lines(tmp_path, record())
    other = one.rename(tmp_path / "renamed.jsonl")
    assert read_mbpp(other) == read(tmp_path, record())


@pytest.mark.parametrize(
    ("code", "test", "entry_point"),
    [
        ("def helper(x): return x\ndef f(x): return helper(x)", "assert set(f([1])) == set([1])", "f"),
        ("class Node: pass\nf = lambda x: x", "assert f(1) == 1", "f"),
        ("class Node: pass", "assert Node() is not None", "Node"),
        ("async def f(): return 1", "import asyncio\nassert asyncio.run(f()) == 1", "f"),
    ],
)
def test_entry_point_is_what_the_first_test_calls_and_the_code_defines(
    tmp_path: Path, code: str, test: str, entry_point: str
) -> None:
    [problem] = read(tmp_path, record(code=code, test_list=[test]))
    assert problem.entry_point == entry_point


def test_code_that_only_warns_is_read(tmp_path: Path) -> None:
    code = r"import re" + "\n" + r"def f(x): return re.match('\d', x)"
    assert read(tmp_path, record(code=code, test_list=["assert f('1')"]))[0].entry_point == "f"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, r"line 2: field 'text' is missing; found task_id, code, .* Add it"),
        ({"code": None}, r"line 2: field 'code' is missing"),
        ({"test_list": None}, r"line 2: field 'test_list' is missing"),
        ({"task_id": None}, r"line 2: field 'task_id' is missing"),
        ({"task_id": "602"}, r"line 2: field 'task_id' is a string \('602'\); expected a whole number"),
        ({"task_id": True}, r"field 'task_id' is true or false \(True\); expected a whole number"),
        ({"task_id": 1.5}, r"field 'task_id' is a number with a fraction"),
        ({"task_id": -1}, r"field 'task_id' is -1; expected 0 or more"),
        (
            {"task_id": 975},
            r"field 'task_id' is 975, which is in no split of MBPP \(1 to 974\); expected a field 'split'",
        ),
        ({"split": "holdout"}, r"field 'split' is 'holdout'; expected one of prompt, train, validation, test"),
        ({"splt": "train"}, r"line 2: unknown field 'splt'; known are task_id, .* split"),
        ({"prompt": "Add."}, r"field 'prompt' is given beside 'text'; expected only one of the two"),
        ({"text": " \n"}, r"field 'text' is empty; expected a string with something in it"),
        ({"code": ""}, r"field 'code' is empty"),
        ({"test_list": []}, r"field 'test_list' is empty; expected a list with something in it"),
        ({"test_list": "assert f(1)"}, r"field 'test_list' is a string \('assert f\(1\)'\); expected a list"),
        ({"test_list": [3]}, r"field 'test_list\[0\]' is a whole number \(3\); expected a string"),
        ({"test_list": ["assert ("]}, r"field 'test_list\[0\]' is no Python: '\(' was never closed in its line 1"),
        ({"test_list": ["assert other(1) == 1"]}, r"'test_list' is about other; expected a test of .*\(add_one\)"),
        ({"test_setup_code": "x ="}, r"field 'test_setup_code' is no Python: invalid syntax in its line 1"),
        (
            {"code": "x = 1\ndef f(:\n  pass"},
            r"field 'code' is no Python: invalid syntax in its line 2; expected a program",
        ),
        ({"code": "def add_one(x): return '\0'"}, r"field 'code' is no Python: source code .*null bytes"),
        ({"text": "half \ud800"}, r"field 'text' is half of a surrogate pair; expected whole characters"),
    ],
)
def test_a_bad_field_is_named_with_file_line_what_was_found_and_expected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"problems\.jsonl, line 2: (?s:.*){message.removeprefix('line 2: ')}"):
        read(tmp_path, record(), record(**({"task_id": 602} | changes)))


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3: field 'task_id' is 601, as in line 1; expected an id that no other"):
        read(tmp_path, record(601), record(602), record(601))


def test_data_without_a_training_problem_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no training problem \(it has 1 prompt, 0 train, 0 validation, 2 test\)"):
        read(tmp_path, record(1), record(11), record(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty; expected at least one problem"),
        (b"\n \n", r"is empty"),
        (b"[]", r"is empty"),
        (b'{"task_id": 601,', r"line 1: broken JSON: .*expected one object a line"),
        (b'{"task_id": 601} x', r"line 1: broken JSON: Extra data in"),
        (b"[1, 2]", r"line 1: a whole number \(1\); expected an object"),
        (b'"text"', r"line 1: a string \('text'\); expected an object"),
        (b"null", r"line 1: null \(None\); expected an object"),
        (b"[" * 100_000, r"broken JSON"),
        (b'{"task_id": ' + b"9" * 5000 + b"}", r"broken JSON: Exceeds the limit"),
        (b"<!DOCTYPE html><html>404</html>", r"begins with b'<!DOCTYPE .* is an HTML page"),
        (b"  \n<html><body>502", r"is an HTML page, perhaps an error page: download the raw file"),
        (b"<?xml version='1.0'?><Error>", r"is an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", r"is a git-LFS pointer: run `git lfs pull`"),
        (b"\x1f\x8b\x08\x00", r"is gzip: unpack it"),
        (b"PK\x03\x04\x14", r"is a zip archive: unpack it"),
        (b"PAR1\x15\x04", r"is a Parquet table: export it as JSON lines"),
        (b'{"text": "caf\xe9"}', r"line 1: not UTF-8: byte 0xe9 in .*Save the file as UTF-8"),
        ('{"task_id": 601}'.encode("utf-16"), r"line 1: not UTF-8: byte 0xff"),
    ],
)
def test_a_file_that_is_no_data_is_refused_with_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"mbpp\.jsonl.*{message}"):
        read_mbpp(path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"task_id": 602,}', r"line 4: broken JSON"),
        ("7", r"line 4: a whole number \(7\); expected an object"),
        ('{"task_id": 602, "text": "caf\udce9"}', r"line 4: not UTF-8: byte 0xe9"),
    ],
)
def test_lines_are_counted_in_a_list_too(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "list.json"
    text = f"[\n{json.dumps(record())},\n\n{second}\n]"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_mbpp(path)


@pytest.mark.parametrize("ending", ["] garbage {{{", ",]", '\n]\n[{"task_id": 602}]', "\n", "\n {", "\n, "])
def test_a_list_that_breaks_off_or_goes_on_behind_its_end_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(f"[{json.dumps(record())}{ending}")
    with pytest.raises(UserError, match=r"list\.json, line \d: broken JSON"):
        read_mbpp(path)


def test_a_line_of_100_mb_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    with path.open("wb") as stream:
        stream.write(json.dumps(record()).encode() + b"\n" + b'{"text": "')
        stream.truncate(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"line 2: longer than 1,048,576 bytes; expected one problem a line"):
            read_mbpp(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10_000_000


def test_a_list_too_large_to_be_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LIST_BYTES", 100)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([record()]))
    with pytest.raises(UserError, match=r"is one list of \d+ bytes; expected at most 100\. Write one problem a line"):
        read_mbpp(path)


def test_a_missing_file_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    write_lines(tmp_path, record())
    with pytest.raises(UserError, match=r"no data file .*mbpp\.jsonl\. Beside it: problems\.jsonl\."):
        read_mbpp(tmp_path / "mbpp.jsonl")
    with pytest.raises(UserError, match=r"Beside it: no \.jsonl or \.json file"):
        read_mbpp(tmp_path / "nowhere" / "mbpp.jsonl")
