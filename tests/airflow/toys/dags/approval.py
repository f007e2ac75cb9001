"""The end of the daily run in small, and a person who is asked before it."""

from datetime import datetime

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, approval

with DAG("approval", schedule=None, start_date=datetime(2026, 1, 1), default_args=DEFAULTS):
    chain(
        approval("approve"),
        EmptyOperator(task_id="promote"),
        EmptyOperator(task_id="report", trigger_rule="none_failed"),
    )
