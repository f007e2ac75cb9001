"""# Housekeeping

Once a week: what does nobody need any more? `look` only says what would go, and why: artifacts, attempts, checkpoints and runs that no alias, no
pin and none of the last runs needs, and old runs in MLflow that no version came of.

`remove` takes it away, where the form says so or, if that is left empty, where the environment file says `housekeeping.delete: true`; otherwise
it is **skipped**. It looks again, and what came to be needed since stays. How much is kept is `housekeeping` in the environment file.

The same on a terminal: `wmtp gc`, and `wmtp gc --delete`.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, cleaning, cleaning_params

with DAG(
    "housekeeping",
    description="Show what nobody needs any more, and remove it if that is wanted.",
    doc_md=__doc__,
    schedule="0 18 * * SUN",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    params=cleaning_params(),
    tags=["wmtp"],
    default_args={**DEFAULTS, "execution_timeout": timedelta(hours=6)},
):
    chain(
        cleaning("look", removes=False, doc_md="Says what would go, and why. Removes nothing."),
        cleaning("remove", removes=True, doc_md="Removes it, if the form or the environment file says so."),
    )
