"""The stage `judge` on programs written by hand, and on all of MBPP's own solutions."""

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import Split
from mlops_tasks.data.problems import IoTest, Problem, write_problems
from mlops_tasks.data.prompts import prompts_sha256
from mlops_tasks.data.sources.mbpp import read_mbpp
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.judging import Completion, judge, rows_of, score
from mlops_tasks.evaluation.referee import Referee, check_references
from mlops_tasks.evaluation.sandbox import Sandbox
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact, Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

DOUBLE = "def double(x):\n    return 2 * x\n"
SQUARE = "def square(x):\n    return x * x\n"


def problem(number: int, solution: str, *tests: str, setup: str = "", split: Split = "validation") -> Problem:
    return Problem(
        id=str(number), prompt="Write a function.", solution=solution, tests=tests, setup=setup,
        entry_point=solution.split("(", maxsplit=1)[0].removeprefix("def "), split=split, source="made", licence="CC0-1.0",
    )  # fmt: skip


PROBLEMS = (
    problem(9, DOUBLE, "assert double(1) == 2", "assert double(30) == 60", "assert double(7) == 14"),
    problem(10, SQUARE, "assert square(11) == 121", "assert square(3) == nine", setup="nine = square(3)"),
)
NAMES = {"9": "double", "10": "square"}


def completions_of(*texts: tuple[str, int, str]) -> list[Completion]:
    shown = {one.id: one.tests[0] for one in PROBLEMS}
    return [Completion(id, sample, f'"""\n{shown[id]}\n"""\n', text) for id, sample, text in texts]


def run(
    completions: Sequence[Completion],
    problems: Sequence[Problem] = PROBLEMS,
    protocol: str = "docstring-0shot",
    **changes: Any,
) -> list[dict[str, Any]]:
    settings = {"min_seconds": 1.0, "reference_factor": 5.0, "num_workers": 2, **changes}
    with Referee(problems, protocol, **settings) as referee:
        for one in completions:
            referee.submit(one.problem_id, one.completion)
        return rows_of(problems, completions, referee.finish())


def test_each_completion_gets_the_verdict_that_it_earns() -> None:
    rows = run(
        completions_of(
            ("10", 1, "def square(x): return 121"),
            ("9", 0, DOUBLE + "\n\n"),
            ("9", 1, "def double(x): return x + 1"),
            ("9", 2, "def double(x): return 60"),
            ("10", 0, "def square(x): return x ** 2"),
        )
    )
    assert [
        (row["problem_id"], row["sample"], row["verdict"], row["tests_passed"], row["num_tests"]) for row in rows
    ] == [
        ("9", 0, "passed", 3, 3),
        ("9", 1, "failed", 1, 3),
        ("9", 2, "failed", 1, 3),
        ("10", 0, "passed", 2, 2),
        ("10", 1, "passed", 2, 2),
    ]
    assert [row["exact_match"] for row in rows] == [True, False, False, False, False]
    # 60 is the answer of a test that the prompt does not show.
    assert [row["reads_answer"] for row in rows] == [False, False, False, False, True]
    assert rows[3]["program"] == (
        "def square(x): return x ** 2\nnine = square(3)\nassert square(11) == 121\nassert square(3) == nine\n"
    )


def test_one_text_is_run_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    really_run = Sandbox.run
    monkeypatch.setattr(
        Sandbox, "run", lambda self, some, **how: asked.append(len(some)) or really_run(self, some, **how)
    )
    rows = run(completions_of(*(("9", sample, "import random\n" + DOUBLE) for sample in range(50))))
    assert len(rows) == 50
    assert asked == [2, 1], "two reference solutions, and one text"


def test_the_limit_follows_the_reference_solution() -> None:
    slow = problem(1, "def f(x):\n    for _ in range(9_000_000): pass\n    return x\n", "assert f(1) == 1")
    as_slow = Completion("1", 0, "", slow.solution)
    for_ever = Completion("1", 1, "", "def f(x):\n    while True: pass")
    rows = run([as_slow, for_ever], [slow], min_seconds=0.01, reference_factor=4.0)
    assert [row["verdict"] for row in rows] == ["passed", "timeout"]


def test_a_problem_whose_own_solution_fails_judges_nobody() -> None:
    broken = problem(4, DOUBLE, "assert double(1) == 3")
    with pytest.raises(DataError, match=r"own solutions do not pass their tests: 4 \(failed, test 1: AssertionError\)"):
        run([], [broken])


def made_rows(*passed: tuple[str, bool, int]) -> list[dict[str, Any]]:
    return [
        {"problem_id": id, "passed": ok, "verdict": "passed" if ok else "failed", "tests_passed": tests, "num_tests": 4,
         "exact_match": False, "reads_answer": id == "a"}
        for id, ok, tests in passed
    ]  # fmt: skip


def test_scores_are_means_over_problems() -> None:
    # Problem a: 1 of 2 passes, b: none, so pass@1 is (1/2 + 0)/2 and pass@2 is (1 + 0)/2.
    scores = score(made_rows(("a", True, 4), ("a", False, 2), ("b", False, 0), ("b", False, 1)), (2,))
    assert scores["pass_at_k"] == {"1": 0.25, "2": 0.5}
    assert scores["num_problems"] == 2
    assert scores["verdicts"] == {"passed": 1, "failed": 3, "error": 0, "timeout": 0, "crashed": 0}
    assert scores["tests_passed_share"] == pytest.approx(7 / 16)
    assert (scores["num_reading_answer"], scores["num_passed_reading_answer"]) == (2, 1)
    low, high = scores["pass_at_k_interval"]["1"]
    assert low < 0.25 < high


ASKED = {"protocol": "docstring-0shot", "num_samples": 2, "temperature": 0.5, "top_p": 0.9}
CONFIG = {
    **ASKED, "k": [1, 2], "min_seconds": 1.0, "reference_factor": 5.0,
    "problems": {"split": "validation", "skip": 0, "limit": None},
}  # fmt: skip


def attempt_of(
    environment: Environment,
    completions: Sequence[Completion],
    folder: Path,
    *,
    asked: Sequence[Problem] = PROBLEMS,
    **changes: Any,
) -> Attempt:
    store = Store.open(environment.store)
    data, made = store.begin("pull/d"), store.begin("generate/g")
    write_problems(data.folder / "validation.parquet", asked)
    rows = [vars(one) for one in completions]
    pq.write_table(pa.Table.from_pylist(rows), made.folder / "completions.parquet")
    known = [{"problem_id": one.id, "bits": 12.0 * (place + 1), "num_bytes": 8} for place, one in enumerate(asked)]
    pq.write_table(pa.Table.from_pylist(known), made.folder / "likelihoods.parquet")
    inputs: dict[str, Artifact] = {
        "data": store.commit(data, {"metrics": {}}),
        "completions": store.commit(made, {"metrics": {"temperature": 0.1}}),
    }
    folder.mkdir()
    return Attempt({**CONFIG, **changes}, inputs, folder, environment, store, "k", "judge/k")


SAMPLES = completions_of(
    ("9", 0, DOUBLE), ("9", 1, "def double(x): return 3"), ("10", 0, "squared"), ("10", 1, "def square(x): return 121")
)


def test_judge_writes_outcomes_and_scores(environment: Environment, tmp_path: Path) -> None:
    attempt = attempt_of(environment, SAMPLES, tmp_path / "out")
    metrics = judge(attempt)
    assert "seccomp" in metrics.pop("protections")
    assert set(metrics.pop("programs_may")) <= {"write to a folder", "read what this user may"}
    assert metrics.pop("num_tests_inside") == 2, "the set-up of problem 10 asks its program, so both tests rest on it"
    assert metrics == json.loads((attempt.folder / "scores.json").read_text())
    assert {name: metrics[name] for name in ASKED} == ASKED, "as asked, whatever `generate` was asked before"
    assert metrics["prompt_sha256"] == prompts_sha256([SAMPLES[0].prompt, SAMPLES[2].prompt])
    assert metrics["pass_at_k"] == {"1": 0.5, "2": 1.0}
    assert (metrics["bits_per_byte"], metrics["unsupported"]) == (36.0 / 16, {})
    outcomes = pq.read_table(attempt.folder / "outcomes.parquet").to_pylist()
    assert [(row["problem_id"], row["sample"], row["verdict"]) for row in outcomes] == [
        ("9", 0, "passed"),
        ("9", 1, "failed"),
        ("10", 0, "error"),
        ("10", 1, "passed"),
    ]
    assert [row["tests_inside"] for row in outcomes] == [0, 0, 0, 2]
    assert outcomes[2]["message"] == "solution: NameError: name 'squared' is not defined"


def script(id: str, output: str) -> Problem:
    return Problem(
        id=id, prompt="Example\n\n10 11\n\nprints\n\n21", solution="print(sum(map(int, input().split())))\n", split="validation",
        io_tests=(IoTest(input="10 11\n", output=output), IoTest(input="1 2", output="3")), source="made", licence="CC0-1.0",
    )  # fmt: skip


def test_scripts_that_reproduce_their_outputs_are_scored_and_the_others_are_listed(
    environment: Environment, tmp_path: Path
) -> None:
    problems = [script("a", "21"), script("b", "22")]
    prompt = problems[0].prompt
    completions = [
        Completion(id, sample, prompt, text)
        for id in ("a", "b")
        for sample, text in enumerate((problems[0].solution, "print(21)"))
    ]
    attempt = attempt_of(environment, completions, tmp_path / "out", asked=problems, protocol="codecontests-stdio")
    metrics = judge(attempt)
    assert (metrics["num_problems"], metrics["pass_at_k"]["1"], metrics["tests_passed_share"]) == (1, 0.5, 0.75)
    assert list(metrics["unsupported"]) == ["b"]
    assert metrics["bits_per_byte"] == 1.5, "of a alone"
    assert metrics["num_reading_answer"] == 1
    rows = pq.read_table(attempt.folder / "outcomes.parquet").to_pylist()
    assert [(row["problem_id"], row["verdict"], row["exact_match"], row["reads_answer"]) for row in rows] == [
        ("a", "passed", True, False),
        ("a", "failed", False, True),
    ]


@pytest.mark.parametrize(("samples", "chosen"), [(SAMPLES[:2], {"limit": 1}), (SAMPLES[2:], {"skip": 1})])
def test_judge_takes_problems_by_number(
    environment: Environment, tmp_path: Path, samples: list[Completion], chosen: dict[str, int]
) -> None:
    problems = {"split": "validation", **chosen}
    metrics = judge(attempt_of(environment, samples, tmp_path / "out", problems=problems))
    assert (metrics["num_problems"], metrics["pass_at_k"]["1"]) == (1, 0.5)


def test_judging_twice_gives_the_same_bytes(environment: Environment, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        place = environment.model_copy(update={"store": str(tmp_path / f"store-{name}")})
        attempt = attempt_of(place, SAMPLES, tmp_path / name)
        judge(attempt)
        written.append({file.name: file.read_bytes() for file in attempt.folder.iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("completions", "match"),
    [
        (SAMPLES[:3], r"\[\('10', 1\)\] missing"),
        ([*SAMPLES, SAMPLES[0]], r"\[\('9', 0\)\] missing, unexpected or there twice"),
        ([*SAMPLES[:3], Completion("11", 0, "", "")], r"\('11', 0\)"),
    ],
)
def test_completions_of_other_problems_are_refused(
    environment: Environment, tmp_path: Path, completions: list[Completion], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        judge(attempt_of(environment, completions, tmp_path / "out"))


def test_judging_loads_no_model_library() -> None:
    script = "import sys, mlops_tasks.evaluation.judging; print([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(found) == []


@pytest.mark.slow
@pytest.mark.parametrize(("file", "count"), [("mbpp.jsonl", 974), ("sanitized-mbpp.json", 427)])
def test_all_published_solutions_pass(mbpp_folder: Path, file: str, count: int) -> None:
    problems = read_mbpp(mbpp_folder / file)
    outcomes = check_references(problems)
    assert [(one.id, out) for one, out in zip(problems, outcomes, strict=True) if not out.passed] == []
    assert len(outcomes) == count
