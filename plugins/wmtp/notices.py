"""Tells people what a run came to: by mail, to Slack, or to a webhook, as the environment file says.

Owns what is news, and its words. Each way is an Airflow notifier of its own, which Airflow calls when the task has ended and its state is
known. One that fails says so in the log and costs neither the run nor the other ways anything; a server that does not answer holds nothing up
for long.
"""

from __future__ import annotations

import html
import json
import logging
import threading
import urllib.request
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import InvalidURL
from typing import Any
from urllib.parse import urljoin

from airflow.sdk import BaseNotifier, Connection, Context

from mlops_tasks.config.environment import Environment, Event, SlackNotice, SmtpNotice, WebhookNotice
from mlops_tasks.errors import DataError, WmtpError
from mlops_tasks.stage import Run
from mlops_tasks.store import Store
from wmtp import links

log = logging.getLogger(__name__)

SECONDS = 30.0
"""How long one notice may take."""

_SLACK = "https://hooks.slack.com/services"
_OF_PROMOTION: dict[str, Event] = {"promoted": "promotion", "refused": "refusal"}


class ChampionDecayed(DataError):
    """Production loads a model that is not any more what it was."""


@dataclass(frozen=True)
class News:
    """One event, as people are told of it."""

    event: Event
    title: str
    sentence: str
    """Why."""
    links: Mapping[str, str]
    """Where to look: Airflow, the report, MLflow, whichever there are."""
    dag: str
    run: str
    task: str

    @property
    def text(self) -> str:
        """All of it in plain lines."""
        return "\n".join([self.title, self.sentence, *(f"{name}: {link}" for name, link in self.links.items())])

    @property
    def as_html(self) -> str:
        """All of it but the title, for a mail."""
        links = "".join(
            f'<li>{html.escape(name)}: <a href="{html.escape(link)}">{html.escape(link)}</a></li>'
            for name, link in self.links.items()
        )
        return f"<p>{html.escape(self.sentence).replace(chr(10), '<br>')}</p><ul>{links}</ul>"


def news_of_failure(context: Context, environment: Environment) -> News:
    """What a task is news of that failed for good.

    Args:
        context: of the task; without `exception` where its process died and the scheduler speaks for it.
        environment: of this Airflow.
    """
    ti, error = context["ti"], context.get("exception")
    has_decayed = isinstance(error, ChampionDecayed)
    title = "The champion has decayed" if has_decayed else f"{ti.dag_id}: {ti.task_id} failed"
    sentence = str(error) if error else "Its process ended without a word; look at the machine that it ran on."
    where = {"Airflow": ti.log_url}
    prefix = Run.prefix_of(environment, ti.dag_id, ti.run_id)
    with suppress(
        WmtpError
    ):  # a run that came to no report has no link to one, and a store that is away has none either
        if Store.of(environment).backend.modified(f"{prefix}/{links.REPORT}"):
            where |= _report(ti, prefix)
    where |= _mlflow(environment)
    return News("decay" if has_decayed else "failure", title, sentence, where, ti.dag_id, ti.run_id, ti.task_id)


def news_of_promotion(context: Context, environment: Environment) -> News | None:
    """What a `promote` that ended well is news of; None: the candidate was the champion already."""
    ti = context["ti"]
    run = Run.open(environment, Run.prefix_of(environment, ti.dag_id, ti.run_id))
    pointer = run.pointer("promote")
    event = _OF_PROMOTION.get(pointer.detail["outcome"]) if pointer else None
    if pointer is None or event is None:
        return None
    name, version = run.spec.recipe.model.name, pointer.detail["version"]
    # The report is written after this.
    where = {"Airflow": ti.log_url, **_report(ti, run.prefix), **_mlflow(environment, links.of_version(name, version))}
    title = f"{name}: version {version} {'is the champion now' if event == 'promotion' else 'was refused'}"
    return News(event, title, pointer.detail["reason"], where, ti.dag_id, ti.run_id, ti.task_id)


def news_of_rollback(context: Context, environment: Environment) -> News | None:
    """What a rollback that ended well is news of; None: it was repeated, and production loads another version by now."""
    ti, moved = context["ti"], getattr(context["ti"].task, "moved", None)
    if moved is None:
        return None
    name, version = moved["name"], moved["version"]
    where = {"Airflow": ti.log_url, **_mlflow(environment, links.of_version(name, version))}
    title = f"{name}: rolled back to version {version}"
    over = f"It takes the place of version {moved['over']}. " if moved["over"] else ""
    sentence = f"{over}{moved['by']}: {moved['reason']}"
    return News("rollback", title, sentence, where, ti.dag_id, ti.run_id, ti.task_id)


def _report(ti: Any, prefix: str) -> dict[str, str]:
    # Without a base URL a page of ours has no host, and Airflow's own address has its fallback.
    return {"report": urljoin(ti.log_url, links.page(f"{prefix}/{links.REPORT}"))}


def _mlflow(environment: Environment, route: str = "") -> dict[str, str]:
    page = links.mlflow(environment, route)
    return {"MLflow": page} if page else {}


class Notifier(BaseNotifier):
    """One way to tell people.

    Args:
        way: as the environment file describes it.
        environment: of this Airflow.
        news_of: what a task's context is news of.
    """

    def __init__(
        self,
        way: SmtpNotice | SlackNotice | WebhookNotice,
        environment: Environment,
        news_of: Callable[[Context, Environment], News | None],
    ) -> None:
        super().__init__()
        self.way, self.environment, self._news_of = way, environment, news_of

    def notify(self, context: Context) -> None:
        """Tell what is news and wanted."""
        news = self._news_of(context, self.environment)
        if news is None or news.event not in self.way.events:
            return
        what = (self.way.kind, self.way.connection, news.event)
        if (flaw := _flaw_of(lambda: self.send(news))) is None:
            log.info("%s (connection %s) was told of the %s", *what)
        else:
            log.error("%s (connection %s) could not be told of the %s: %s", *what, flaw)

    @abstractmethod
    def send(self, news: News) -> None:
        """Send it."""


class Mail(Notifier):
    """By SMTP."""

    way: SmtpNotice

    def send(self, news: News) -> None:
        """Through the provider's own notifier; its templates are not used, for a sentence may hold braces."""
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        way = self.way
        SmtpNotifier(
            to=list(way.to), from_email=way.sender, subject=news.title, html_content=news.as_html, smtp_conn_id=way.connection
        ).notify({})  # fmt: skip


class Slack(Notifier):
    """To an incoming webhook of Slack."""

    def send(self, news: News) -> None:
        """As one message."""
        connection = Connection.get(self.way.connection)
        _post(f"{connection.host or _SLACK}/{connection.password}", {"text": news.text})


class Webhook(Notifier):
    """To any address that takes JSON."""

    def send(self, news: News) -> None:
        """As an object of all that is known."""
        connection = Connection.get(self.way.connection)
        token = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
        _post(str(connection.host), asdict(news), token)


def callbacks(
    environment: Environment, news_of_success: Callable[[Context, Environment], News | None] | None = None
) -> dict[str, list[Notifier]]:
    """The callbacks of a task: one notifier for each way that the environment file names.

    Args:
        environment: of this Airflow.
        news_of_success: what the task's good end is news of; None: it is none.
    """
    news_of: dict[str, Callable[[Context, Environment], News | None]] = {"on_failure_callback": news_of_failure}
    if news_of_success is not None:
        news_of["on_success_callback"] = news_of_success
    return {
        when: [_KINDS[way.kind](way, environment, news) for way in environment.notices]
        for when, news in news_of.items()
    }


_KINDS: dict[str, type[Notifier]] = {"smtp": Mail, "slack": Slack, "webhook": Webhook}


def _post(url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
    if not url.startswith(("https://", "http://")):
        # Never the address itself: with Slack it is the secret.
        raise ValueError("The host of the connection is no address. Give one that begins with https://.")
    given = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), given, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS):
            pass
    except (ValueError, InvalidURL):
        # What they say holds the address or the header, and so the secret.
        raise ValueError("The connection's host or password holds a space or a line break. Take it out.") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent on would come without its body, and the bearer token to whoever was named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _flaw_of(send: Callable[[], None]) -> str | None:
    """Do it, or give up on it: libraries have time-outs for each step and try again, and that adds up to minutes.

    Returns:
        Why it failed, without a traceback, which might show what the connection holds; None: it did not.
    """
    flaws: list[str] = []

    def try_to() -> None:
        try:
            send()
        except Exception as error:  # whatever a library raises must not fail the others, nor be silent
            flaws.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=try_to, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        return f"no answer in {SECONDS:g} s; given up. Look at the connection and at the server."
    return flaws[0] if flaws else None
