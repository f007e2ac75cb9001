"""Looking for a better recipe: a space of settings, one study shared by several workers, and when its best is believed to be better.

runs/<deployment>/<dag>/<run>/study     the key of the study that the run works on, which is not that of today's code
select/<key>/cells/<cell>/spec.json, …  its trials, and the trainings by which the best is believed, each a run of its own
"""

from __future__ import annotations

from mlops_tasks.stage import Run

NAME = "study"


def key_begun(run: Run) -> str | None:
    """The key of the study that a run has worked on, whatever the code is now; None: it has not begun, or is none."""
    selected, name = run.pointer("select"), run.store.backend.read(f"{run.prefix}/{NAME}")
    return selected.key if selected else name.decode() if name else None
