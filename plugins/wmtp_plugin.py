"""What Airflow loads of ours beside the DAGs: the pages that its tasks link to."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class WmtpPlugin(AirflowPlugin):
    """Registered in every process of Airflow; only the API server asks for the pages."""

    name = "wmtp"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The pages, made only where they are served: the scheduler and the tasks need no web framework."""
        from wmtp.pages import PREFIX, app

        return [{"app": app, "url_prefix": PREFIX, "name": "wmtp"}]
