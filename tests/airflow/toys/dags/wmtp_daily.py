"""The daily run in small."""

import sys
from datetime import datetime, timedelta

import toys.stages  # noqa: F401
from airflow.sdk import DAG, chain
from wmtp import local, params, stage, task

local.LocalStage.program = (sys.executable, "-m", "toys.stages")
task.GRACE_SECONDS = 1.0

with DAG(
    "wmtp_daily",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params=params(),
    default_args={
        "retries": 2,
        "retry_delay": timedelta(seconds=1),
        "retry_policy": task.RETRY_POLICY,
        "execution_timeout": timedelta(minutes=10),
        "trigger_rule": "none_failed",
    },
) as dag:
    plan = stage("plan")
    chain(
        plan,
        stage("pull_data"),
        stage("reference", index=plan.output),
        stage("score"),
        stage("train"),
        stage("generate", index=range(3), map_index_template="{{ ['gate', 'report', 'none'][task.index] }}"),
        stage("report"),
    )
