"""Claims about the report: what it shows, that it needs nothing else, and that nothing in it can be anything but text."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.data.problems import Problem, write_problems
from mlops_tasks.evaluation.metrics import mcnemar, paired_bootstrap
from mlops_tasks.report import page, report
from mlops_tasks.report.charts import Series, layers, lines, nearest, ticks
from mlops_tasks.report.lexemes import lexemes, token_classes
from mlops_tasks.report.markup import Markup, element
from mlops_tasks.stage import Champion, Pointer, Run, Spec, Tuned
from mlops_tasks.store import Artifact, Store

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

ATTACK = "</code></pre><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' {{x}}"
RECIPE = Recipe.model_validate(
    {
        "name": "demo",
        "data": {"source": {"kind": "mbpp", "path": "/data/mbpp.jsonl"}},
        "model": {"name": "demo-coder", "source": {"kind": "folder", "path": "/models/base"}},
        "scoring": {"scorer": "rho1", "reference": {"kind": "cross-fitted", "train": {"steps": 100}}},
        "train": {"steps": 400, "num_heads": 4},
    }
)
SOLUTION = "def add_{n}(a, b):\n    # both are numbers\n    return a + b + {n}\n"
VERDICTS = ("passed", "failed", "error", "timeout", "crashed")


def problem(number: int, split: str, prompt: str | None = None) -> Problem:
    return Problem.model_validate(
        {
            "id": str(number), "prompt": prompt or f"Write a function to add two numbers and {number}.", "solution": SOLUTION.format(n=number),
            "tests": [f"assert add_{number}(1, 2) == {number + 3}", f"assert add_{number}(0, 0) == {number}"],
            "entry_point": f"add_{number}", "split": split, "source": "made up", "licence": "CC-BY-4.0",
        }
    )  # fmt: skip


class Maker:
    """Fills a store with a finished run."""

    def __init__(
        self, environment: Environment, champion: Champion | None = None, *, day: int = 5, recipe: Recipe = RECIPE
    ) -> None:
        self.store = Store.open(environment.store)
        fan_out = {"reference": 2, "score_shard": 2, "generate": 4, "judge": 4}
        spec = Spec(
            recipe=recipe,
            pins={"pull_data": "ab" * 32, "pull_model": "cd" * 32},
            champion=champion,
            fan_out=fan_out,
            created=f"2026-01-{day:02}T03:00:00+00:00",
        )
        prefix = Run.prefix_of(environment, "wmtp_daily", f"scheduled__2026-01-{day:02}T03:00")
        self.store.write_json(f"{prefix}/spec.json", spec.model_dump(mode="json"))
        self.run = Run.open(environment, prefix)

    def commit(
        self, task: str, files: Mapping[str, bytes], metrics: Mapping[str, Any], *,
        index: int = 0, inputs: Mapping[str, Artifact] | None = None, outcome: str = "run", seconds: float = 2.0,
        components: Mapping[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        key = hashlib.sha256(f"{task}{index}{json.dumps(components)}".encode()).hexdigest()
        draft = self.store.begin(f"{task}/{key}")
        for name, data in files.items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes(data)
        made_from = {
            name: {"artifact": one.prefix, "digest": one.digest, "files": ["*"]} for name, one in (inputs or {}).items()
        }
        record = {"key": key, "metrics": dict(metrics), "inputs": made_from, "components": components or {}}
        artifact = self.store.commit(draft, {**record, "seconds": seconds, "device_seconds": 2 * seconds})
        self.point(task, index, outcome, seconds if outcome == "run" else 0.02, artifact)
        return artifact

    def point(
        self,
        task: str,
        index: int,
        outcome: str,
        seconds: float,
        artifact: Artifact | None = None,
        *,
        detail: Any = None,
    ) -> None:
        made = {"digest": artifact.digest, "key": artifact.manifest["key"]} if artifact else {}
        tree = {
            "task": task,
            "index": index,
            "stage": task,
            "outcome": outcome,
            "seconds": seconds,
            "detail": detail or {},
            **made,
        }
        self.run.point(Pointer.model_validate(tree))


def finished_run(
    environment: Environment,
    *,
    completion: str | None = None,
    prompt: str | None = None,
    token: str = "    ",
    scored: Mapping[str, Any] | None = None,
) -> Run:
    """A whole night, with a candidate that is better than the base model; the arguments are put where text can come from outside."""
    maker = Maker(environment)
    learnt, gate, shown = (
        [problem(n, "train", prompt) for n in range(601, 611)],
        [problem(n, "validation", prompt) for n in range(511, 551)],
        [problem(n, "test", prompt) for n in range(11, 71)],
    )
    data = maker.commit(
        "pull_data",
        {f"{rows[0].split}.parquet": as_parquet(environment, rows) for rows in (learnt, gate, shown)}
        | {"unsupported.json": b'{"1_A": "it accepts several answers: <any>"}'},
        {"num_dropped": 7, "num_unsupported": 1},
        outcome="hit",
        seconds=3.1,
    )
    base = maker.commit("pull_model", {"model/config.json": b"{}"}, {}, outcome="hit", seconds=8.4)
    maker.point("pull_reference", 0, "skipped", 0.0)
    references = {
        f"reference{k}": maker.commit(
            "reference", {"model/w": bytes([k])}, {}, index=k, inputs={"data": data, "model": base}, seconds=31.0
        )
        for k in range(2)
    }
    for index in range(2):
        maker.commit(
            "score_shard",
            {"scores": bytes([index])},
            {},
            index=index,
            inputs={"data": data, **references},
            seconds=6.0 + index,
        )
    scores = maker.commit(
        "score", {"scores.parquet": b"s"}, scored or {}, inputs={"data": data, **references}, seconds=0.6
    )
    train = maker.commit(
        "train",
        training_files(token),
        training_metrics(),
        inputs={"data": data, "model": base, "scores": scores},
        seconds=74.2,
    )
    chosen = random.Random(0)
    judged = []
    for index, (model, problems, skill) in enumerate(
        [(train, gate, 0.7), (train, shown, 0.65), (base, gate, 0.2), (base, shown, 0.25)]
    ):
        rows = [outcome(chosen, one, skill, completion) for one in problems]
        judged.append(rows)
        completions = maker.commit(
            "generate", {"c": bytes([index])}, {}, index=index, inputs={"data": data, "model": model}, seconds=11.0
        )
        maker.commit(
            "judge",
            {"outcomes.parquet": parquet(rows)},
            summary(rows),
            index=index,
            inputs={"data": data, "completions": completions},
            seconds=4.0,
        )
    maker.point("promote", 0, "done", 3.3, detail=promotion(judged[0], judged[2]))
    return maker.run


def as_parquet(environment: Environment, problems: Sequence[Problem]) -> bytes:
    path = Path(environment.store).parent / f"{problems[0].split}.parquet"
    write_problems(path, problems)
    return path.read_bytes()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())


def outcome(chosen: random.Random, problem: Problem, skill: float, completion: str | None) -> dict[str, Any]:
    verdict = "passed" if chosen.random() < skill else chosen.choice(VERDICTS[1:])
    text = {
        "passed": problem.solution, "failed": problem.solution.replace("+", "-"), "error": "def broken(:\n    return 'half a string\n",
        "timeout": "def forever():\n    while True:\n        pass\n", "crashed": "import os\nos._exit(1)\n",
    }[verdict]  # fmt: skip
    message = {
        "passed": "",
        "failed": "test 1: AssertionError",
        "error": "SyntaxError: invalid syntax (line 1)",
        "timeout": "ran longer than 3.0 s",
        "crashed": "exit status 1",
    }[verdict]
    reads = verdict == "passed" and chosen.random() < 0.15
    return {
        "problem_id": problem.id, "sample": 0, "completion": completion or (f"def f(a, b):\n    return {int(problem.id) + 3}\n" if reads else text), "program": text,
        "verdict": verdict, "passed": verdict == "passed", "tests_passed": 2 * (verdict == "passed"), "num_tests": 2,
        "message": completion or message, "seconds": 0.04, "exact_match": verdict == "passed" and chosen.random() < 0.5, "reads_answer": reads,
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    share = sum(row["passed"] for row in rows) / len(rows)
    spread = 1.96 * math.sqrt(share * (1 - share) / len(rows))
    return {
        "protocol": "docstring-0shot", "prompt_sha256": "cd" * 32, "num_problems": len(rows), "num_samples": 1, "temperature": 0.0, "top_p": 1.0,
        "pass_at_k": {"1": share}, "pass_at_k_interval": {"1": [share - spread, share + spread]}, "exact_match": sum(row["exact_match"] for row in rows) / len(rows),
        "verdicts": {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS},
        "num_passed_reading_answer": sum(row["reads_answer"] for row in rows), "tests_passed_share": share, "bits_per_byte": 1.375,
    }  # fmt: skip


def training_files(token: str) -> dict[str, bytes]:
    noise = random.Random(1)
    loss = [
        [3.5 * math.exp(-step / 90) + 0.25 + 0.35 * head + noise.gauss(0, 0.04) for head in range(4)]
        for step in range(0, 401, 5)
    ]
    curves: list[dict[str, Any]] = [
        {"step": 5 * place, "loss": sum(heads), "head_nats": heads, "learning_rate": 3e-3 * min(1.0, place / 4) * (1 + math.cos(math.pi * place / 80)) / 2,
         "gradient_norm": 1.2 + noise.gauss(0, 0.1), "weight_ess": 0.55 + 0.1 * math.exp(-place / 20) + noise.gauss(0, 0.005), "weight_entropy": 0.9 + noise.gauss(0, 0.003)}
        for place, heads in enumerate(loss)
    ]  # fmt: skip
    curves += [
        {
            "step": step,
            "validation_nats": 1.0,
            "validation_head_nats": [3.6 * math.exp(-step / 90) + 0.3 + 0.4 * head for head in range(3)]
            + [None if step == 0 else 1.9],
        }
        for step in range(0, 401, 100)
    ]
    tokens = [
        '"""\n',
        "Write",
        " a",
        " function",
        " to",
        " add",
        ".\n",
        '"""\n',
        "def",
        " add",
        "_",
        "12",
        "(",
        "a",
        ",",
        " b",
        "):",
        "\n",
        token,
        "return",
        " a",
        " +",
        " b",
        " +",
        " 12",
        "\n",
    ]
    weights = [None] * 8 + [round(min(3.0, 0.05 + noise.expovariate(1.0)), 3) for _ in tokens[8:]]
    shown = [{"problem_id": str(number), "tokens": tokens, "weights": weights} for number in (601, 602)]
    edges = [place / 10 for place in range(31)]
    counts = [int(4000 * math.exp(-(((edge - 0.9) / 0.7) ** 2))) for edge in edges[:-1]]
    tree = {"histogram": {"edges": edges, "counts": counts}, "examples": shown}
    return {
        "curves.jsonl": "".join(json.dumps(line) + "\n" for line in curves).encode(),
        "weights.json": json.dumps(tree).encode(),
        "calibration.json": json.dumps([bins(head) for head in range(4)]).encode(),
        "model/w": b"trained",
    }


def bins(head: int) -> list[dict[str, float]]:
    """Of a head that is the surer than right the further ahead it looks; its bins 0 to 2 are empty."""
    sure = [place / 10 + 0.05 for place in range(10)]
    return [
        {"count": 40 * (place > 2), "confidence": one, "accuracy": one - 0.04 * head} for place, one in enumerate(sure)
    ]


def training_metrics() -> dict[str, Any]:
    return {
        "steps": 400, "kept_step": 400, "stopped_early": False, "num_examples": 4000, "num_too_long": 3, "train_tokens": 1_234_567, "tokens_per_second": 17321.4,
        "validation_nats_before": 3.9, "validation_nats_after": 0.342, "weight_ess": 0.553, "weight_entropy": 0.902, "resumed_from": None,
    }  # fmt: skip


def promotion(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `promote` says of these outcomes."""
    a, b = [bool(row["passed"]) for row in ours], [bool(row["passed"]) for row in theirs]
    found, test = paired_bootstrap(a, b, confidence=0.95, num_resamples=1000, seed=0), mcnemar(a, b)
    shares = sum(a) / len(a), sum(b) / len(b)
    evidence = {
        "num_problems": len(a), "candidate": shares[0], "baseline": shares[1], "difference": found.difference, "lower_bound": found.lower_bound,
        "low": found.low, "high": found.high, "confidence": 0.95, "min_difference": 0.0, "only_candidate": test.only_a, "only_baseline": test.only_b,
        "mcnemar_p": test.p_value, "compared_with": "the base model",
    }  # fmt: skip
    reason = (
        f"pass@1 is {shares[0]:.1%} against {shares[1]:.1%} of the base model on {len(a)} problems: {100 * found.difference:+.1f} points, "
        f"whose 95% lower bound {100 * found.lower_bound:+.1f} is above +0.0."
    )
    return {"outcome": "promoted", "version": "4", "reason": reason, "evidence": evidence}


class Reader(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.shown = ""
        self.feed(text)
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("input", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.shown += data

    def attributes(self, name: str) -> list[str]:
        return [str(given[name]) for _, given in self.elements if name in given]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [given for _, given in self.elements if name in (given.get("class") or "").split()]


def test_report_is_written_into_the_run_and_logged_beside_its_training(
    environment: Environment, mlflow_database: Path
) -> None:
    shutil.copy(mlflow_database, environment.mlflow_uri.removeprefix("sqlite:///"))
    run = finished_run(environment)
    path = Path(report(run)["path"])
    assert path == Path(environment.store, run.prefix, "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    (logged,) = (Path(environment.store).parent / "mlflow-artifacts").rglob("report.html")
    assert logged.read_bytes() == path.read_bytes()


def test_report_without_mlflow_is_written_with_a_warning(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished_run(environment.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"}))
    with caplog.at_level(logging.WARNING, logger="mlops_tasks"):
        assert Path(report(run)["path"]).is_file()
    assert "but not in MLflow" in caplog.text


def test_page_needs_nothing_else(environment: Environment) -> None:
    text = page(finished_run(environment))
    seen = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in seen.elements
    }
    assert seen.attributes("src") == []
    assert all(link.startswith(("#", "../")) for link in seen.attributes("href"))
    assert not re.search(r"url\(|@import|http-equiv=\"refresh", text)


@pytest.mark.parametrize("place", ["completion", "prompt", "token", "reason"])
def test_hostile_text_is_only_ever_text(environment: Environment, place: str) -> None:
    harmless = Reader(page(finished_run(environment)))
    other = environment.model_copy(update={"store": f"{environment.store}-hostile"})
    run = finished_run(other, **({} if place == "reason" else {place: ATTACK}))
    if place == "reason":
        pointer = run.pointer("promote")
        assert pointer is not None
        run.point(pointer.model_copy(update={"detail": {**pointer.detail, "reason": ATTACK}}))
    hostile = Reader(page(run))
    assert ATTACK in hostile.shown
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in harmless.elements}
    assert not [name for _, given in hostile.elements for name in given if name.startswith("on")]


@pytest.mark.parametrize(
    ("detail", "headline"),
    [
        ({"outcome": "promoted", "version": "4", "reason": "Better."}, "Version 4 of demo-coder is the new champion"),
        ({"outcome": "refused", "version": "5", "reason": "Not better."}, "Version 5 of demo-coder stays a candidate"),
        (
            {"outcome": "already champion", "version": "4", "reason": "Same bytes."},
            "Version 4 of demo-coder is the champion already",
        ),
    ],
)
def test_headline_says_what_came_of_it_and_why(environment: Environment, detail: dict[str, str], headline: str) -> None:
    maker = Maker(environment)
    maker.point("promote", 0, "done", 1.0, detail={**detail, "evidence": {}})
    shown = Reader(page(maker.run)).shown
    assert headline in shown
    assert detail["reason"] in shown


def test_scores_are_shown_with_their_intervals_and_the_difference(environment: Environment) -> None:
    run = finished_run(environment)
    judged, promoted = run.artifact("judge", 0), run.pointer("promote")
    assert judged is not None
    assert promoted is not None
    shown = Reader(page(run)).shown
    low, high = judged.metrics["pass_at_k_interval"]["1"]
    assert f"{100 * judged.metrics['pass_at_k']['1']:.1f}%" in shown
    assert f"{100 * low:.1f}% to {100 * high:.1f}%" in shown
    assert f"{100 * promoted.detail['evidence']['difference']:+.1f}" in shown
    assert promoted.detail["reason"] in shown


def test_unsupported_problems_are_listed_and_every_figure_of_a_score_is_shown(environment: Environment) -> None:
    seen = Reader(page(finished_run(environment)))
    assert "Unsupported problems of the data, for which no model was asked: 1" in seen.shown
    assert "it accepts several answers: <any>" in seen.shown
    assert "1.375" in seen.shown


def test_problems_won_and_lost_are_counted_and_both_programs_stand_side_by_side(environment: Environment) -> None:
    run = finished_run(environment)
    ours, theirs = [judged_rows(run, index) for index in (0, 2)]
    won = sum(ours[id]["passed"] and not theirs[id]["passed"] for id in ours)
    lost = sum(theirs[id]["passed"] and not ours[id]["passed"] for id in ours)
    seen = Reader(page(run))
    assert won > 6
    assert f"Gate set: {won} won, {lost} lost" in seen.shown
    assert f"… and {won - 6 + max(lost - 6, 0)} more in outcomes.parquet" in seen.shown
    first = next(id for id in ours if ours[id]["passed"] and not theirs[id]["passed"])
    assert ours[first]["completion"] in seen.shown
    assert theirs[first]["completion"] in seen.shown


def judged_rows(run: Run, index: int) -> dict[str, Any]:
    judged = run.artifact("judge", index)
    assert judged is not None
    return {row["problem_id"]: row for row in pq.read_table(judged.path("outcomes.parquet")).to_pylist()}


def test_program_that_reads_its_answer_is_shown_as_such(environment: Environment) -> None:
    seen = Reader(page(finished_run(environment)))
    assert "reads the answer off the prompt" in seen.shown
    assert seen.of_class("reads_answer")


def test_token_weights_colour_the_code_and_the_prompt_has_none(environment: Environment) -> None:
    run = finished_run(environment)
    train = run.artifact("train")
    assert train is not None
    (one, _) = json.loads(train.path("weights.json").read_text())["examples"]
    seen = Reader(page(run))
    heats = [float(style.removeprefix("--w:")) for style in seen.attributes("style") if style.startswith("--w:")]
    learnt = [weight for weight in one["weights"] if weight is not None]
    assert heats[: len(learnt)] == pytest.approx([0.85 * weight / 3.0 for weight in learnt], abs=1e-3)
    assert len(seen.of_class("given")) == 2 * one["weights"].count(None)


def test_a_critics_verdict_is_told(environment: Environment) -> None:
    verdict = "critic refused, every token weighs 1: explained variance 0.071 against 0.052"
    assert f"<p>The {verdict}.</p>" in page(finished_run(environment, scored={"critic_verdict": verdict}))


def test_loss_of_each_head_has_a_line(environment: Environment) -> None:
    text = page(finished_run(environment))
    training = re.search(r'aria-label="Training loss".*?</svg>', text, re.DOTALL)
    assert training is not None
    assert training.group().count("<polyline") == 4
    assert training.group().count(",") == 4 * 81  # 81 logged steps


def test_hits_say_what_they_saved(environment: Environment) -> None:
    shown = Reader(page(finished_run(environment))).shown
    assert "2 of 18 tasks were hits" in shown
    assert "saved 11.5 s" in shown


def test_lineage_leads_from_every_input_to_its_artifact_and_to_the_manifests(environment: Environment) -> None:
    run = finished_run(environment)
    seen = Reader(page(run))
    anchors = {f"#{id}" for id in seen.attributes("id")}
    links = seen.attributes("href")
    assert {link for link in links if link.startswith("#")} <= anchors
    manifests = [Path(environment.store, run.prefix, link) for link in links if link.endswith("manifest.json")]
    assert len(manifests) == 16
    assert all(manifest.is_file() for manifest in manifests)


def test_what_an_earlier_run_made_stands_in_the_graph_under_its_stage(environment: Environment) -> None:
    maker = Maker(environment, day=4)
    shard = maker.commit("score_shard", {"s": b"s"}, {})
    later = Maker(environment)
    later.commit("score", {"s": b"s"}, {}, inputs={"shard0": shard}, outcome="hit")
    found = re.search(r'aria-label="What was made of what".*?</svg>', page(later.run), re.DOTALL)
    assert found is not None
    assert Reader(found.group().partition(">")[2].removesuffix("</svg>")).shown == "score_shardscore"
    assert found.group().count("<path") == 1


def test_run_that_has_only_been_planned_says_what_is_missing(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    run = Maker(environment).run
    with caplog.at_level(logging.WARNING, logger="mlops_tasks"):
        report(run)
    assert "no training to put it beside" in caplog.text
    shown = Reader(page(run)).shown
    assert "has not been decided on" in shown
    assert "The task judge had not ended when this page was written." in shown
    assert "The task train had not ended" in shown


def test_set_whose_baseline_is_not_judged_yet_says_so(environment: Environment) -> None:
    run = finished_run(environment)
    Path(environment.store, run.prefix, "judge.2.json").unlink()
    shown = Reader(page(run)).shown
    assert shown.count("The task judge had not ended when this page was written.") == 1


def test_uniform_training_without_curves_is_said_to_have_none(environment: Environment) -> None:
    maker = Maker(environment)
    empty = {"curves.jsonl": b"", "weights.json": b'{"histogram": null, "examples": []}', "model/w": b"w"}
    maker.commit("train", empty, {"steps": 1})
    shown = Reader(page(maker.run)).shown
    assert "The training logged no curves." in shown
    assert "The training kept no histogram of its weights." in shown
    assert "an unknown share at the end" in shown


def test_elements_escape_text_and_attributes_and_keep_markup() -> None:
    made = element(
        "p", "1 < 2", [element("b", '"x"'), None, 3], class_="a", title='say "&"', data_size=0.125, hidden=False
    )
    assert made == '<p class="a" title="say &quot;&amp;&quot;" data-size="0.12">1 &lt; 2<b>&quot;x&quot;</b>3</p>'
    assert isinstance(made, Markup)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.51, [0.2, 0.3, 0.4, 0.5]),
        (0, 400, [0, 100, 200, 300, 400]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_lines_span_the_drawing_from_the_lowest_to_the_highest_point() -> None:
    drawn = lines([Series("a", [(0, 1.0), (10, 0.0)])], x_label="step", y_label="nats", title="t")
    # 520 by 250 with margins 52, 12, 14, 40; six per cent of room above, none below zero: y(1) = 14 + 196 * 0.06 / 1.06.
    assert 'points="52.0,25.1 508.0,210.0"' in drawn


def test_single_point_is_a_dot_and_a_constant_line_is_drawn() -> None:
    assert "<circle" in lines([Series("a", [(5, 1.0)])], x_label="step", y_label="", title="t")
    assert "nan" not in lines([Series("a", [(0, 0.0), (1, 0.0)])], x_label="step", y_label="", title="t")


# What happened and why


def test_task_that_ran_says_what_changed_since_its_last_result(environment: Environment) -> None:
    other = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"steps": 200})})
    first, second = Maker(environment, day=4, recipe=other), Maker(environment)
    for maker, steps in ((first, 200), (second, 400)):
        maker.commit("pull_data", {"w": b"d"}, {}, outcome="hit" if steps == 400 else "run")
        maker.commit("train", training_files(" "), {}, components={"config": {"train": {"steps": steps}, "seed": 0}})
    assert "no earlier result" in told(first, "tasks")
    assert "It is the first run of the recipe demo" in told(first, "tasks")
    assert "config.train.steps: 200 → 400" in told(second, "tasks")
    assert "nothing that its key covers changed" in told(second, "tasks")
    assert "wmtp_daily/scheduled__2026-01-04T03:00" in told(second, "tasks")


def told(maker: Maker, id: str) -> str:
    """What one section shows."""
    found = re.search(rf'<section id="{id}">.*?</section>', page(maker.run), re.DOTALL)
    assert found is not None
    return Reader(found.group()).shown


def test_configuration_says_what_differs_from_the_last_run_of_the_recipe(environment: Environment) -> None:
    other = RECIPE.model_copy(update={"seed": 7})
    old, same, new = Maker(environment, day=3), Maker(environment, day=4), Maker(environment, day=5, recipe=other)
    assert "there is nothing to compare with" in told(old, "recipe")
    assert "The same recipe, data, models and champion as in the last run" in told(same, "recipe")
    assert "What differs from the last run: 1" in told(new, "recipe")
    assert "recipe.seed0 → 7" in told(new, "recipe")


def test_a_tuned_recipe_is_named_with_the_digest_of_its_study(environment: Environment) -> None:
    run = finished_run(environment)
    assert "what a study has found" not in page(run)
    tuned = Tuned(name="mine", key="k" * 64, digest="d" * 64)
    text = page(replace(run, spec=run.spec.model_copy(update={"tuned": tuned})))
    assert (
        f"The recipe is tuned:mine, what a study has found: {run.store.uri}/select/{'k' * 64}, with the digest " in text
    )
    assert "d" * 64 in text


def test_cost_tells_device_seconds_by_task_and_money_only_with_prices(environment: Environment) -> None:
    run = finished_run(environment)
    shown = Reader(page(run)).shown
    # Two references of 31 s, on two devices each.
    assert "reference2.1 min" in shown
    assert "no prices, so no money is told" in shown


def test_each_gate_is_shown_with_its_numbers_and_reason(environment: Environment) -> None:
    maker = Maker(environment)
    named = [
        {"name": "score", "passed": True, "value": 0.25, "limit": 0.2, "text": "0.25 is above 0.2.", "interval": None},
        {
            "name": "no_regression.lists",
            "passed": False,
            "value": -0.5,
            "limit": 0,
            "text": "Worse.",
            "interval": [-0.75, 0.5],
        },
    ]
    detail = {"outcome": "refused", "version": "5", "reason": "Too slow.", "evidence": {}, "gates": named}
    maker.point("promote", 0, "done", 1.0, detail=detail)
    shown = told(maker, "gates")
    assert "Not passed: 1 of 2 gates." in shown
    assert "scorepassedvalue: 0.25limit: 0.20.25 is above 0.2." in shown
    assert "no regression.listsnot passedvalue: -0.5limit: 0interval: -0.75 to 0.5Worse." in shown


def test_decision_without_named_gates_shows_its_paired_comparison(environment: Environment) -> None:
    run = finished_run(environment)
    promoted = run.pointer("promote")
    assert promoted is not None
    shown = Reader(page(run)).shown
    assert "Every gate is passed." in shown
    assert f"lower bound: {promoted.detail['evidence']['lower_bound']:.4g}" in shown


# Data


def test_data_card_counts_lengths_licences_and_passing_references(environment: Environment) -> None:
    maker = Maker(environment)
    maker.run = finished_run(environment)
    shown = told(maker, "data")
    assert "110 problems from a source of the kind mbpp" in shown
    assert "7 training problems were left out" in shown
    # Prompts of 44 characters, solutions of three lines, two tests.
    assert "trainlearnt from1044 (44)3 (3)2made up; CC-BY-4.0" in shown
    assert "40 of 40 of the gate set (100.0%), 60 of 60 of the report set (100.0%)" in shown
    assert SOLUTION.format(n=601) in shown


# Weights and calibration


def test_python_is_cut_into_classes_even_where_it_is_broken() -> None:
    text = "def f(x):\n    return 'open  # none\n# two\n"
    kinds = [(kind, text[start:end]) for kind, start, end in lexemes(text)]
    assert kinds == [
        ("keyword", "def"), ("name", "f"), ("operator", "("), ("name", "x"), ("operator", ")"), ("operator", ":"), ("indentation", "\n    "),
        ("keyword", "return"), ("string", "'open  # none"), ("indentation", "\n"), ("comment", "# two"), ("indentation", "\n"),
    ]  # fmt: skip


def test_token_belongs_to_the_class_of_its_first_character_that_is_not_blank() -> None:
    tokens = [
        "    ",
        "for",
        " _",
        "i",
        " in",
        ' "a',
        ' b"',
        "  ",
        "# it",
        "'s",
        "\n",
        "\t",
        "x",
        "1",
        " =",
        " 0x",
        "F",
        "<|end|>",
    ]
    assert token_classes(tokens) == [
        "indentation", "keywords", "names", "names", "keywords", "literals", "literals", "other", "comments", "comments",
        "indentation", "indentation", "names", "names", "operators", "literals", "literals", "other",
    ]  # fmt: skip


def test_mean_weight_of_each_token_class_is_shown(environment: Environment) -> None:
    maker = Maker(environment)
    weighed = {"problem_id": "1", "tokens": ["Say", "return", " x", " +", " y"], "weights": [None, 2.0, 0.5, 1.0, 0.7]}
    files = {"curves.jsonl": b"", "weights.json": json.dumps({"histogram": None, "examples": [weighed]}).encode()}
    maker.commit("train", files, {"steps": 1})
    shown = told(maker, "weights")
    assert "keywords, 25.0% of tokens2.00" in shown
    assert "names, 50.0% of tokens0.60" in shown
    assert "4 learnt tokens of 1 training problems" in shown


def test_calibration_of_each_head_is_told_by_its_expected_error(environment: Environment) -> None:
    maker = Maker(environment)
    maker.run = finished_run(environment)
    shown = told(maker, "training")
    # Head 3 is right 8 points less often than it is sure, whatever the bin; seven bins of 40 tokens, in the mean 0.65 sure.
    assert "328057.0%65.0%8.0 points" in shown


def test_training_of_before_calibration_was_measured_says_so(environment: Environment) -> None:
    maker = Maker(environment)
    maker.commit("train", {"curves.jsonl": b"", "weights.json": b'{"examples": []}'}, {"steps": 1})
    assert "The training measured no calibration" in told(maker, "training")


# Programs


def test_programs_are_marked_by_how_they_ended_and_counted(environment: Environment) -> None:
    run = finished_run(environment)
    rows = judged_rows(run, 1)
    text = page(run)
    seen = Reader(text)
    for verdict in VERDICTS:
        count = sum(row["verdict"] == verdict for row in rows.values())
        assert len(seen.of_class(f"is-{verdict}")) == count
        assert f'for="only-{verdict}">{verdict} <small>{count}</small>' in text
        assert f"#only-{verdict}:checked" in text
    assert "judges itself" not in seen.shown


def test_program_whose_tests_rest_on_its_own_judgement_is_marked(environment: Environment) -> None:
    maker = Maker(environment)
    one = {**outcome(random.Random(0), problem(11, "test"), 1.0, None), "tests_inside": 1}
    maker.commit("judge", {"outcomes.parquet": parquet([one])}, summary([one]), index=1)
    maker.commit("pull_data", {"test.parquet": as_parquet(environment, [problem(11, "test")])}, {})
    shown = told(maker, "programs")
    assert "its own judgement is in its tests" in shown
    assert "judges itself 1" in shown


def test_page_of_a_run_with_huge_programs_stays_below_three_megabytes(environment: Environment) -> None:
    long = "def f(a):\n" + "    return [1, 'x', a]\n" * 2000
    text = page(finished_run(environment, completion=long, prompt="Write it. " * 5000, token="x = 1\n" * 400))
    assert 1_000_000 < len(text.encode()) < 3_000_000


def test_layers_follow_the_longest_way_and_keep_children_below_their_parents() -> None:
    parents = {"b": [], "a": [], "of_a": ["a"], "of_b": ["b"], "last": ["b", "of_a", "of_b"]}
    assert layers(parents) == [["b", "a"], ["of_b", "of_a"], ["last"]]


def test_what_is_made_of_nothing_stands_close_above_its_first_child() -> None:
    assert layers({"data": [], "model": [], "score": ["data"], "train": ["model", "score"]})[1] == ["model", "score"]


def test_a_line_that_a_longer_way_says_too_is_not_drawn() -> None:
    parents = {"data": [], "score": ["data"], "train": ["data", "score"], "judge": ["data", "train"]}
    assert nearest(parents) == {"data": [], "score": ["data"], "train": ["score"], "judge": ["train"]}
