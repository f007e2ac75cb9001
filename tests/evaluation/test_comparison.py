"""Two judged models: figures by hand, refusals, and the page with every flip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_tasks import logs
from mlops_tasks.__main__ import main
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.comparison import compare
from mlops_tasks.evaluation.metrics import mcnemar
from mlops_tasks.report.comparison import Compared, in_words, page
from mlops_tasks.store import Artifact, Store

IDS = ("1", "2", "3", "4")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def data_of(store: Store) -> Artifact:
    draft = store.begin("pull/d")
    problems = [
        Problem(id=id, prompt=f"Task <{id}>.", solution="x = 1", tests=(f"assert x == {id}",), split="test", source="s", licence="l")
        for id in IDS
    ]  # fmt: skip
    write_problems(draft.folder / "test.parquet", problems)
    return store.commit(draft, {})


def judged(
    store: Store, key: str, passed: Sequence[Sequence[bool]], ids: Sequence[str] = IDS, **changes: Any
) -> Artifact:
    """An artifact of `judge`: for each problem whether its programs pass."""
    draft = store.begin(f"judge/{key}")
    rows = [
        {"problem_id": id, "sample": sample, "completion": f"<{key}> of x{id}", "program": "", "verdict": "passed" if ok else "failed",
         "passed": ok, "tests_passed": int(ok), "num_tests": 1, "tests_inside": int(ok), "message": "", "exact_match": False, "reads_answer": False}
        for id, samples in zip(ids, passed, strict=True) for sample, ok in enumerate(samples)
    ]  # fmt: skip
    # In no order: a comparison sorts samples itself.
    pq.write_table(pa.Table.from_pylist(rows[::-1]), draft.folder / "outcomes.parquet")
    share = sum(sum(one) / len(one) for one in passed) / len(passed)
    metrics = {
        "protocol": "docstring-0shot", "prompt_sha256": "ab" * 32, "num_problems": len(ids), "num_samples": len(passed[0]),
        "temperature": 0.0, "top_p": 1.0, "pass_at_k": {"1": share}, "pass_at_k_interval": {"1": [0.1, 0.9]}, "exact_match": 0.0,
        "verdicts": {"passed": 1, "failed": 3}, "tests_passed_share": share, "num_reading_answer": 0, "num_passed_reading_answer": 0,
        "bits_per_byte": 1.25, **changes,
    }  # fmt: skip
    data = store.find("pull/d") or data_of(store)
    given = {"artifact": data.prefix, "digest": data.digest, "files": ["*"]}
    return store.commit(draft, {"stage": "judge", "metrics": metrics, "inputs": {"data": given}})


YES, NO = [True], [False]


def test_a_comparison_pairs_problems(store: Store) -> None:
    a, b = judged(store, "a", [YES, YES, NO, YES]), judged(store, "b", [YES, NO, YES, NO])
    found = compare(a, b)
    assert (found.a, found.b, found.interval.difference) == (0.75, 0.5, 0.25)
    assert (found.only_a, found.only_b) == (["2", "4"], ["3"])
    assert found.mcnemar == mcnemar([True, True, False, True], [True, False, True, False])
    assert found.interval.low < 0.25 < found.interval.high


def test_with_several_samples_rates_are_compared_and_flips_are_of_the_first(store: Store) -> None:
    a = judged(store, "a", [[True, False], [False, True], [False, False], [False, False]])
    b = judged(store, "b", [[False, False], [False, True], [False, False], [False, False]])
    found = compare(a, b)
    assert (found.a, found.b) == (0.25, 0.125)
    assert (found.only_a, found.only_b) == (["1"], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "chat"}, "protocol is docstring-0shot in one and chat in the other"),
        ({"prompt_sha256": "cd"}, "prompt_sha256 is"),
        ({"temperature": 0.5}, "temperature is 0.0 in one and 0.5"),
        ({"programs_may": ["write to a folder"]}, r"programs_may is None in one and \['write to a folder'\]"),
    ],
)
def test_scores_of_other_questions_are_refused_unless_told(store: Store, changes: dict[str, Any], message: str) -> None:
    a, b = judged(store, "a", [YES] * 4), judged(store, "b", [NO] * 4, **changes)
    with pytest.raises(DataError, match=rf"not measured alike: {message}"):
        compare(a, b)
    allowed = compare(a, b, allow_differences=True)
    assert len(allowed.differences) == 1 and len(allowed.problem_ids) == 4


def test_scores_of_other_problems_are_refused_and_compared_on_the_common_ones_if_told(store: Store) -> None:
    a, b = judged(store, "a", [YES, YES], ("1", "2")), judged(store, "b", [NO, NO], ("2", "3"))
    with pytest.raises(DataError, match=r"2 problems are in one only: 1, 3"):
        compare(a, b)
    assert compare(a, b, allow_differences=True).problem_ids == ["2"]
    c = judged(store, "c", [NO, NO], ("8", "9"))
    with pytest.raises(DataError, match="share no problem"):
        compare(a, c, allow_differences=True)


def compared(store: Store, **how: Any) -> Compared:
    a, b = judged(store, "a", [YES, YES, NO, YES]), judged(store, "b", [YES, NO, YES, NO], bits_per_byte=1.5)
    return Compared.of(a, b, names=("new<", "old"), **how)


def test_the_page_shows_every_flip_with_both_programs_escaped(store: Store) -> None:
    text = page(compared(store))
    assert text.count("&lt;a&gt; of") == text.count("&lt;b&gt; of") == 3
    assert "Solved by only new&lt;: 2" in text and "Solved by only old: 1" in text
    for id in ("2", "3", "4"):
        assert f"Task &lt;{id}&gt;." in text
    assert "Task &lt;1&gt;." not in text
    assert text.count("1 of 1 tests, in 1 the program had a say") == text.count("1 of 1 tests") == 3
    assert not re.search(r"<script|https?://|src=|@import|url\(", text)
    assert "+25.0" in text and "1.2500" in text and "1.5000" in text


def test_the_page_says_so_where_a_difference_is_shown_or_is_not(store: Store) -> None:
    assert compared(store).verdict == "No difference is shown: the interval holds zero."
    many = [str(number) for number in range(40)]
    a, b = judged(store, "all", [YES] * 40, many), judged(store, "none", [NO] * 40, many)
    assert Compared.of(a, b, names=("a", "b")).verdict == "a is better than b on these problems."
    assert Compared.of(b, a, names=("b", "a")).verdict == "a is better than b on these problems."


def test_a_page_of_problems_that_are_gone_has_the_programs_still(store: Store) -> None:
    found = compared(store)
    store.remove("pull/d")
    assert "&lt;a&gt; of x2" in page(found) and "Task &lt;2&gt;." not in page(found)


def test_the_table_names_what_was_not_asked_alike(store: Store) -> None:
    a, b = judged(store, "a", [YES] * 4), judged(store, "b", [NO] * 4, protocol="chat")
    lines = list(in_words(Compared.of(a, b, names=("A", "B"), allow_differences=True)))
    assert lines[0] == "not asked alike: protocol is docstring-0shot in one and chat in the other"
    assert any(re.fullmatch(r"pass@1 +1\.0000 +0\.0000", line) for line in lines)


def test_the_command_writes_the_page_and_refuses_what_is_no_judged_model(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "configure", lambda **_: None)  # it takes pytest's handlers away
    a, _ = judged(store, "a", [YES, YES, NO, YES]), judged(store, "b", [YES, NO, YES, NO])
    environment = tmp_path / "environment.yaml"
    environment.write_text(f"store: {tmp_path / 'store'}\nmlflow_uri: sqlite:///mlflow.db\n")
    out = tmp_path / "page.html"
    common = ["--env", str(environment), "--out", str(out), "--names", "new", "old"]
    assert main(["compare", a.uri, "judge/b", *common]) == 0
    assert "new minus old on 4 problems: +25.0 points" in capsys.readouterr().out
    assert out.read_text().startswith("<!doctype html>")
    assert main(["compare", a.uri, "pull/d", *common]) == 64
    assert "pull/d is no whole artifact of judge" in caplog.text
