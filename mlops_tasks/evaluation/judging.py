"""The stage `judge`: run what a model wrote and say how good it is.

Owns what a program is, how long it may take, what is kept of each (`outcomes.parquet`) and what is said of all
(`scores.json`). Running is `sandbox`'s, the estimators are `metrics`', the programs come from the stage `generate`.

A time limit follows what the problem's own solution takes, on this machine and in this run, so that neither a slow problem
nor a slow machine fails a program. Nothing here loads a model.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_tasks.config import EvaluationSet, Protocol, Settings
from mlops_tasks.data.problems import Problem, chosen, read_problems
from mlops_tasks.data.prompts import prompts_sha256
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.answers import reads_answer
from mlops_tasks.evaluation.metrics import pass_at_k, wilson_interval
from mlops_tasks.evaluation.sandbox import VERDICTS, Outcome, Program, Sandbox
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

REFERENCE_SECONDS = 120.0
"""CPU time that a problem's own solution may take."""

_OUTCOMES = pa.schema(
    {
        "problem_id": pa.string(),
        "sample": pa.int32(),
        "completion": pa.string(),
        "program": pa.string(),
        "verdict": pa.string(),
        "passed": pa.bool_(),
        "tests_passed": pa.int32(),
        "num_tests": pa.int32(),
        "message": pa.string(),
        "exact_match": pa.bool_(),
        "reads_answer": pa.bool_(),
    }
)


class JudgeConfig(Settings):
    """The part of the recipe that `judge` is keyed by; see `mlops_tasks.config.Evaluation`."""

    protocol: Protocol
    num_samples: int
    temperature: float
    top_p: float
    k: tuple[int, ...]
    min_seconds: float
    reference_factor: float
    problems: EvaluationSet


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    problem_id: str
    sample: int
    prompt: str
    completion: str


def judge(attempt: Attempt) -> dict[str, Any]:
    """Run the completions of `generate` against the problems of a split.

    Raises:
        DataError: a problem's own solution fails, or the completions are not of these problems.
    """
    started = time.monotonic()
    config = JudgeConfig.model_validate(attempt.config)
    problems = chosen(read_problems(attempt.inputs["data"].path(f"{config.problems.split}.parquet")), config.problems)
    completions = read_completions(attempt.inputs["completions"].path("completions.parquet"))
    _require_samples(problems, completions, config.num_samples)
    rows = run_completions(
        problems,
        completions,
        min_seconds=config.min_seconds,
        reference_factor=config.reference_factor,
        num_workers=attempt.environment.judge.num_workers,
    )
    pq.write_table(
        pa.Table.from_pylist(rows, schema=_OUTCOMES), attempt.folder / "outcomes.parquet", compression="zstd"
    )
    # Of what was asked, not of what `generate` says of itself: the same programs may have been drawn in another way.
    about = config.model_dump(mode="json", include={"protocol", "num_samples", "temperature", "top_p"})
    prompts = {one.problem_id: one.prompt for one in completions}
    scores = {**about, "prompt_sha256": prompts_sha256(list(prompts.values())), **score(rows, config.k)}
    (attempt.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    log.info(
        "judged %d programs of %d problems in %.1f s: pass@1 %.4f, verdicts %s",
        len(rows), len(problems), time.monotonic() - started, scores["pass_at_k"]["1"], scores["verdicts"],
    )  # fmt: skip
    return scores


def read_completions(path: Path) -> list[Completion]:
    """Read what `generate` wrote."""
    columns = ["problem_id", "sample", "prompt", "completion"]
    return [Completion(**row) for row in pq.read_table(path, columns=columns).to_pylist()]


def check_references(problems: Sequence[Problem], num_workers: int | None = None) -> list[Outcome]:
    """Run each problem's own solution; the outcomes are in the order of the problems.

    Raises:
        UserError: this machine cannot confine a program.
    """
    with Sandbox(num_workers) as sandbox:
        return _run_references(sandbox, problems)


def _run_references(sandbox: Sandbox, problems: Sequence[Problem]) -> list[Outcome]:
    programs = [_program(problem, problem.solution, REFERENCE_SECONDS) for problem in problems]
    return sandbox.run(programs, title="reference solutions")


def run_completions(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    *,
    min_seconds: float,
    reference_factor: float,
    num_workers: int | None,
) -> list[dict[str, Any]]:
    """Run every completion and describe each in a row of `outcomes.parquet`, in order of problem and sample.

    Args:
        min_seconds: least limit in CPU seconds.
        reference_factor: the limit is this many times what the problem's own solution takes, if that is more.

    Raises:
        DataError: a problem's own solution does not pass.
    """
    by_id = {problem.id: problem for problem in problems}
    with Sandbox(num_workers) as sandbox:
        references = _run_references(sandbox, problems)
        _require_passed(problems, references)
        limits = {
            problem.id: max(min_seconds, reference_factor * reference.seconds)
            for problem, reference in zip(problems, references, strict=True)
        }
        # Samples of one problem are often the same text: one run tells of all of them.
        programs = {
            (one.problem_id, one.completion): _program(by_id[one.problem_id], one.completion, limits[one.problem_id])
            for one in completions
        }
        outcomes = dict(zip(programs, sandbox.run(list(programs.values())), strict=True))
    place = {problem.id: index for index, problem in enumerate(problems)}
    ordered = sorted(completions, key=lambda one: (place[one.problem_id], one.sample))
    return [
        _row(
            by_id[one.problem_id],
            one,
            programs[one.problem_id, one.completion],
            outcomes[one.problem_id, one.completion],
        )
        for one in ordered
    ]


def _program(problem: Problem, solution: str, limit_seconds: float) -> Program:
    return Program(solution, problem.tests, problem.setup, limit_seconds)


def _row(problem: Problem, completion: Completion, program: Program, outcome: Outcome) -> dict[str, Any]:
    shown = [test for test in problem.tests if test in completion.prompt]
    return {
        "problem_id": problem.id,
        "sample": completion.sample,
        "completion": completion.completion,
        "program": program.text,
        "verdict": outcome.verdict,
        "passed": outcome.passed,
        "tests_passed": outcome.tests_passed,
        "num_tests": outcome.num_tests,
        "message": outcome.message,
        "exact_match": _without_trailing_space(completion.completion) == _without_trailing_space(problem.solution),
        "reads_answer": reads_answer(completion.completion, shown),
    }


def _without_trailing_space(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _require_passed(problems: Sequence[Problem], references: Sequence[Outcome]) -> None:
    failed = [
        f"{problem.id} ({outcome.verdict}, {outcome.message})"
        for problem, outcome in zip(problems, references, strict=True)
        if not outcome.passed
    ]
    if failed:
        raise DataError(
            f"The problems' own solutions do not pass their tests: {'; '.join(failed[:10])}{' …' if failed[10:] else ''}. No "
            "program can be judged by such tests. Mend or leave out these problems; `wmtp check-data` lists all of them."
        )


def _require_samples(problems: Sequence[Problem], completions: Sequence[Completion], num_samples: int) -> None:
    expected = {(problem.id, sample) for problem in problems for sample in range(num_samples)}
    found = Counter((one.problem_id, one.sample) for one in completions)
    wrong = sorted(set(found) ^ expected) or sorted(key for key, times in found.items() if times > 1)
    if wrong or not expected:
        raise DataError(
            f"The completions are not {num_samples} of each of {len(problems)} problems: {len(completions)} rows, and "
            f"(problem, sample) {wrong[:5]} missing, unexpected or there twice. Run `generate` and `judge` on the same split."
        )


def score(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """Sum outcomes up.

    Args:
        rows: as of `run_completions`, the same number n for each problem.
        ks: each at most n.
    """
    passed = [list(outcomes) for outcomes in _by_problem(rows).values()]
    means = {k: sum(pass_at_k(len(one), sum(one), k) for one in passed) / len(passed) for k in sorted({1, *ks})}
    verdicts = Counter(row["verdict"] for row in rows)
    return {
        "num_problems": len(passed),
        "pass_at_k": {str(k): mean for k, mean in means.items()},
        "pass_at_k_interval": {str(k): list(wilson_interval(mean, len(passed))) for k, mean in means.items()},
        "exact_match": sum(row["exact_match"] for row in rows) / len(rows),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "tests_passed_share": sum(row["tests_passed"] / row["num_tests"] for row in rows) / len(rows),
        "num_reading_answer": sum(row["reads_answer"] for row in rows),
        "num_passed_reading_answer": sum(row["reads_answer"] and row["passed"] for row in rows),
    }


def _by_problem(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    passed: dict[str, list[bool]] = {}
    for row in rows:
        passed.setdefault(row["problem_id"], []).append(row["passed"])
    return passed
