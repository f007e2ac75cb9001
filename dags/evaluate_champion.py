"""# Is the champion still good?

Once a week the model that production loads is asked the gate's problems of the data as they are now. The same champion on the same data is a
**hit**, and nothing is computed; new data, or another version of what runs the model, are not.

It has **decayed** where its score now is lower than when it was a candidate by more than `watch.max_loss`, or lower than `watch.min_score`, and
in both cases beyond what chance explains. Then the task `watch` fails, and who is to be notified of a decay is. Nothing is rolled back by
itself: train on the new data, or `wmtp registry rollback`. Without a champion the run is skipped.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, params, stage

from mlops_tasks.pipeline import CHAMPION_GATE

with DAG(
    "evaluate_champion",
    description="Evaluate the champion on the data as they are now.",
    doc_md=__doc__,
    schedule="0 12 * * SUN",  # not beside the daily run
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=1,
    params=params(),
    tags=["wmtp"],
    default_args={**DEFAULTS, "execution_timeout": timedelta(hours=1)},
):
    chain(
        stage("plan", only_champion=True, doc_md="Pins data and champion; without a champion the run is skipped."),
        stage("pull_data", doc_md="The problems as they are now."),
        stage(
            "generate",
            index=CHAMPION_GATE,
            execution_timeout=timedelta(hours=6),
            doc_md="Has the champion write programs.",
        ),
        stage("judge", index=CHAMPION_GATE, doc_md="Runs them against the problems' tests."),
        stage("watch", doc_md="Compares with what it was as a candidate; fails if it has decayed."),
    )
