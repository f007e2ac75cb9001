"""# Roll a model back

Gives production back the version that it loaded before, or one that you name: the alias `champion` moves, `previous` goes to the
version that it leaves, and your name, the time and the reason are kept with both and in the log of moves.

Started by hand only. A version that is archived, or not whole in the store any more, is refused with what to do instead; so is a
second rollback that would bring back what the first one took away, unless you name that version. A task that is cleared and runs again
changes nothing. The nightly run does not make the version champion again that was taken back here.

The same on a terminal: `wmtp registry rollback MODEL --reason TEXT`; `wmtp registry list MODEL` shows versions and moves.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG
from wmtp import DEFAULTS, rollback, rollback_params

with DAG(
    "model_rollback",
    description="Give production back an earlier model.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    max_active_runs=1,
    params=rollback_params(),
    tags=["wmtp"],
    default_args={**DEFAULTS, "execution_timeout": timedelta(minutes=10)},
):
    rollback("roll_back", doc_md="Moves the alias `champion` back, and says who did it and why.")
