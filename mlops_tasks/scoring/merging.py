"""The stage `score`: the shards' tables as one, whatever their number.

Owns the check that every training problem is there once. How values came about is `shards`'.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from mlops_tasks.data.problems import natural_order, read_problems
from mlops_tasks.errors import DataError
from mlops_tasks.scoring.gate import VERDICT_FILE, Verdict
from mlops_tasks.scoring.scorers import ScoreRow, read_scores, write_scores
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact

log = logging.getLogger(__name__)


def score(attempt: Attempt) -> dict[str, Any]:
    """Merge `scores.parquet` of all shards, by id.

    Raises:
        DataError: a training problem is missing or there twice, or the data has no such problem.
    """
    shards = [artifact for name, artifact in attempt.inputs.items() if name.startswith("shard")]
    tables = [read_scores(shard.path("scores.parquet")) for shard in shards]
    too_long = sorted((id for shard in shards for id in shard.metrics["too_long"]), key=natural_order)
    _require_each_once(attempt.inputs["data"], [*too_long, *(problem_id for table in tables for problem_id in table)])
    rows = {problem_id: row for table in tables for problem_id, row in table.items()}
    write_scores(attempt.folder / "scores.parquet", rows)
    return {
        "num_problems": len(rows),
        "num_too_long": len(too_long),
        "too_long": too_long,
        "num_targets": int(sum(row.is_target.sum() for row in rows.values())),
        **_means(rows.values()),
        **_critics_verdict(attempt, rows.values()),
    }


def _require_each_once(data: Artifact, found: Iterable[str]) -> None:
    wanted = Counter(problem.id for problem in read_problems(data.path("train.parquet")))
    counts = Counter(found)
    for fault, ids in (("missing from", wanted - counts), ("there twice, or unknown to the data, in", counts - wanted)):
        if ids:
            shown = ", ".join(sorted(ids, key=natural_order)[:5])
            raise DataError(
                f"{len(ids)} training problems of {data.uri} are {fault} the shards, the first are {shown}. "
                "Run all tasks of score_shard again."
            )


def _critics_verdict(attempt: Attempt, rows: Collection[ScoreRow]) -> dict[str, Any]:
    """Whether the critic's values weigh the tokens, for the manifest and whoever reads it."""
    if "critic" not in attempt.inputs:
        return {}
    min_gain = attempt.config["scoring"]["min_gain"]
    verdict = Verdict.read(attempt.inputs["critic"].path(VERDICT_FILE))
    is_used, words = verdict.is_used(min_gain), verdict.in_words(min_gain)
    log.log(logging.INFO if is_used else logging.WARNING, "%s", words)
    num_weighed = sum(row.is_scored for row in rows)
    return {
        "critic_is_used": is_used,
        "critic_verdict": words,
        "explained_variance": verdict.explained_variance,
        "position_explained_variance": verdict.position_explained_variance,
        "min_gain": min_gain,
        "num_weighed_problems": num_weighed,
    }


def _means(rows: Collection[ScoreRow]) -> dict[str, float]:
    """Mean nats over all targets, for each model that was run."""
    means: dict[str, float] = {}
    for name in ("reference_nats", "base_nats"):
        columns = [(getattr(row, name), row.is_target) for row in rows]
        if columns and columns[0][0] is not None:
            means[f"mean_{name}"] = float(
                np.mean(np.concatenate([nats[is_target] for nats, is_target in columns]), dtype=np.float64)
            )
    return means
