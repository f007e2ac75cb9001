"""The only place that configures logging: one line an event, on standard error."""

import logging
import sys


def configure(*, verbose: bool = False) -> None:
    """Send this process's log lines to standard error; libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlops_tasks").setLevel(logging.DEBUG if verbose else logging.INFO)
