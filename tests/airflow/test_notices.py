"""Who is told what of a run, over a real SMTP server and a real HTTP server; and that one who cannot be reached costs nothing."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope
from airflow.sdk import DAG
from in_process import Server, run_task
from mlflow_server import free_port
from nights import NAME, STRONG, STRONGER, WEAK, Night, solved, tuesday
from wmtp import links, notices, rollback, rollback_params, stage
from wmtp.task import RETRY_POLICY

from mlops_tasks.config.environment import Environment, WebhookNotice
from mlops_tasks.registry.promotion import promote

pytestmark = pytest.mark.usefixtures("program_here")


@dataclass
class Heard:
    """What the servers were sent."""

    mails: list[EmailMessage] = field(default_factory=list)
    posts: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    """Path, body, authorization."""
    smtp_port: int = 0
    http_port: int = 0

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"


@pytest.fixture(scope="module")
def servers() -> Iterator[Heard]:
    heard = Heard(smtp_port=free_port())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.posts.append((self.path, body, self.headers["Authorization"]))
            self.send_response({"/broken": 500, "/moved": 301}.get(self.path, 200))
            if self.path == "/moved":
                self.send_header("Location", f"http://localhost:{heard.http_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    mail = Controller(heard, hostname="127.0.0.1", port=heard.smtp_port, ready_timeout=60)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        heard.http_port = http.server_port
        threading.Thread(target=http.serve_forever, daemon=True).start()
        mail.start()
        yield heard
        mail.stop()
        http.shutdown()


@pytest.fixture
def heard(servers: Heard, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Nothing yet; Airflow's connections lead to the servers."""
    servers.mails.clear()
    servers.posts.clear()
    host = f"http://127.0.0.1:{servers.http_port}"
    plain = {
        "disable_ssl": True,
        "disable_tls": True,
        "from_email": "wmtp@example.org",
        "timeout": 30,
        "retry_limit": 1,
    }
    connections: dict[str, dict[str, Any]] = {
        "MAIL": {"conn_type": "smtp", "host": "127.0.0.1", "port": servers.smtp_port, "extra": plain},
        "SLACK": {"conn_type": "slackwebhook", "host": host, "password": "T0/B0/secret"},
        "HOOK": {"conn_type": "http", "host": f"{host}/hook", "password": "sesame"},
        "BROKEN": {"conn_type": "http", "host": f"{host}/broken", "password": "sesame"},
        "NO_ADDRESS": {"conn_type": "slackwebhook", "host": "secret", "password": "secret"},
    }
    for name, connection in connections.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))
    return servers


MAIL = {"kind": "smtp", "connection": "mail", "to": ["night@example.org"]}
SLACK = {"kind": "slack", "connection": "slack"}
HOOK = {"kind": "webhook", "connection": "hook"}


def ended(night: Night, task: str, ways: list[dict[str, Any]], *, run: str = "monday") -> Server:
    """Run a task of the daily run where these are to be told."""
    with (
        told_by(night, ways),
        DAG("wmtp_daily", schedule=None, start_date=datetime(2026, 1, 1)) as dag,
    ):
        stage(task, retry_policy=RETRY_POLICY)
        return run_task(dag, task, run=run)[0]


@contextmanager
def told_by(night: Night, ways: list[dict[str, Any]]) -> Iterator[None]:
    """An environment file with these ways, as long as the block lasts."""
    tree = night.environment.model_dump(mode="json", exclude_unset=True) | {"notices": ways}
    file = Path(night.environment.store).parent / "environment.json"
    file.write_text(json.dumps(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WMTP_ENVIRONMENT", str(file))
        yield


def test_a_promotion_is_told_by_mail_to_slack_and_to_a_webhook(monday: Night, heard: Heard) -> None:
    run = monday.run(STRONG, WEAK)

    server = ended(
        monday, "promote", [MAIL, SLACK, HOOK, MAIL | {"to": ["day@example.org"], "sender": "me@example.org"}]
    )

    assert server.told["state"] == "success"
    title = f"{NAME}: version 1 is the champion now"
    report = f"http://localhost:8080/wmtp/{run.prefix}/report.html"
    mail, other = heard.mails
    assert (other["From"], other["To"]) == ("me@example.org", "day@example.org")
    body = mail.get_body()
    assert body is not None
    text = body.get_content()
    assert (mail["Subject"], mail["From"], mail["To"]) == (title, "wmtp@example.org", "night@example.org")
    assert "75.0% against 25.0% of the base model" in text and report in text
    (path, message, _), (_, news, authorization) = sorted(heard.posts, key=lambda post: post[0] == "/hook")
    assert path == "/T0/B0/secret"
    assert (
        message["text"].startswith(f"{title}\npass@1 is 75.0% against 25.0%") and f"report: {report}" in message["text"]
    )
    assert authorization == "Bearer sesame"
    assert (news["event"], news["title"], news["dag"], news["run"], news["task"]) == (
        "promotion", title, "wmtp_daily", "monday", "promote",
    )  # fmt: skip
    assert news["links"]["Airflow"].endswith("/dags/wmtp_daily/runs/monday/tasks/promote?try_number=1")
    assert news["links"]["report"] == report


def test_a_refusal_is_told_with_its_reason(monday: Night, heard: Heard) -> None:
    monday.run(WEAK, WEAK)
    ended(monday, "promote", [HOOK])
    ((_, news, _),) = heard.posts
    assert (news["event"], news["title"]) == ("refusal", f"{NAME}: version 1 was refused")
    assert "is not above" in news["sentence"]


def test_a_rollback_is_told_with_who_asked_for_it_and_why(monday: Night, heard: Heard) -> None:
    promote(monday.run(STRONG, WEAK))
    promote(tuesday(monday).run(STRONGER, STRONG))
    with (
        told_by(monday, [HOOK]),
        DAG("model_rollback", schedule=None, start_date=datetime(2026, 1, 1), params=rollback_params()) as dag,
    ):
        rollback("roll_back")
        run_task(dag, "roll_back", run="back", conf={"model": NAME, "reason": "writes nonsense"})
    ((_, news, _),) = heard.posts
    assert (news["event"], news["title"]) == ("rollback", f"{NAME}: rolled back to version 1")
    assert news["sentence"] == "It takes the place of version 2. Airflow (model_rollback/back): writes nonsense"
    assert news["links"]["Airflow"].endswith("/dags/model_rollback/runs/back/tasks/roll_back?try_number=1")


def test_a_model_that_is_champion_already_is_no_news(monday: Night, heard: Heard) -> None:
    run = monday.run(STRONG, WEAK)
    promote(run)
    again = Night(monday.environment, name="again", champion=tuesday(monday).champion)
    again.run(STRONG, STRONG)
    assert ended(monday, "promote", [HOOK], run="again").told["state"] == "success"
    assert heard.posts == []


def test_a_failure_is_told_with_the_sentence_of_the_error(monday: Night, heard: Heard) -> None:
    monday.run(STRONG, WEAK, prompt_sha256="{{ other }} <b>")  # braces and angles are no template and no markup
    server = ended(monday, "promote", [MAIL, HOOK])
    assert server.told["state"] == "failed"
    ((_, news, _),) = heard.posts
    assert (news["event"], news["title"]) == ("failure", "wmtp_daily: promote failed")
    assert "promote[0] ended with 65: " in news["sentence"]
    assert "not measured alike: prompt_sha256 is p in one and {{ other }} <b> in the other" in news["sentence"]
    assert list(news["links"]) == ["Airflow"], "the run came to no report"
    body = heard.mails[0].get_body()
    assert body is not None and "{{ other }} &lt;b&gt; in the other" in body.get_content()


def test_a_task_that_airflow_tries_again_is_not_news(monday: Night, heard: Heard) -> None:
    monday.run(STRONG, WEAK)
    away = Night(monday.environment.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{free_port()}"}))
    server = ended(away, "promote", [HOOK])
    assert (server.told["state"], heard.posts) == ("up_for_retry", [])


def test_a_decay_is_told_as_one(monday: Night, heard: Heard) -> None:
    promote(monday.run(STRONG, WEAK))
    tuesday(monday).run(STRONG, solved(*range(5)))
    server = ended(monday, "watch", [HOOK], run="tuesday")
    assert server.told["state"] == "failed"
    ((_, news, _),) = heard.posts
    assert (news["event"], news["title"]) == ("decay", "The champion has decayed")
    assert "Version 1 of coder, the champion, has decayed. pass@1 is 12.5%" in news["sentence"]
    assert f"wmtp registry rollback {NAME}" in news["sentence"]


def test_only_what_was_asked_for_is_told(monday: Night, heard: Heard) -> None:
    monday.run(WEAK, WEAK)
    ended(monday, "promote", [HOOK | {"events": ["failure", "decay"]}, SLACK | {"events": ["refusal"]}])
    assert [path for path, _, _ in heard.posts] == ["/T0/B0/secret"]


def test_one_who_cannot_be_reached_fails_neither_the_task_nor_the_others(
    monday: Night, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "SECONDS", 30.0)
    gone = {"conn_type": "smtp", "host": "127.0.0.1", "port": free_port(), "extra": {"retry_limit": 1, "timeout": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_GONE", json.dumps(gone))
    monday.run(STRONG, WEAK)
    ways = [
        MAIL | {"connection": "gone"},
        SLACK | {"connection": "unknown"},
        SLACK | {"connection": "no_address"},
        HOOK | {"connection": "broken"},
        HOOK,
    ]

    server = ended(monday, "promote", ways)

    assert server.told["state"] == "success"
    assert [path for path, _, _ in heard.posts] == ["/broken", "/hook"]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [line.partition(": ")[0] for line in said] == [
        f"{kind} (connection {id}) could not be told of the promotion"
        for kind, id in (("smtp", "gone"), ("slack", "unknown"), ("slack", "no_address"), ("webhook", "broken"))
    ]
    assert "Connection refused" in said[0] and "HTTP Error 500" in said[3]
    assert "T0/B0" not in caplog.text and "secret" not in caplog.text and "sesame" not in caplog.text


def test_a_webhook_that_has_moved_is_told_nothing_and_its_token_goes_nowhere(heard: Heard) -> None:
    moved = f"http://127.0.0.1:{heard.http_port}/moved"
    flaw = notices._flaw_of(lambda: notices._post(moved, {"title": "x"}, {"Authorization": "Bearer sesame"}))
    assert flaw is not None and flaw.startswith("HTTPError: HTTP Error 301")
    assert [path for path, _, _ in heard.posts] == ["/moved"]


@pytest.mark.parametrize("body", ["https://127.0.0.1/services/T0/B0/SECRET x", "https://127.0.0.1/a"])
def test_an_address_or_a_token_with_a_space_is_not_shown(body: str) -> None:
    flaw = notices._flaw_of(lambda: notices._post(body, {}, {"Authorization": "Bearer s3cr3t\n"}))
    assert flaw is not None and "holds a space or a line break" in flaw
    assert "SECRET" not in flaw and "s3cr3t" not in flaw


def test_one_who_never_answers_is_given_up_on(
    monday: Night, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": silent.getsockname()[1],
            "extra": {"disable_ssl": True, "timeout": 30, "retry_limit": 0},
        }
        monkeypatch.setenv("AIRFLOW_CONN_MUTE", json.dumps(mute))
        monday.run(STRONG, WEAK)
        server = ended(monday, "promote", [MAIL | {"connection": "mute"}, HOOK])
    assert server.told["state"] == "success" and len(heard.posts) == 1
    assert "no answer in 2 s; given up." in caplog.text


def test_links_are_what_people_can_open_from_a_mail(
    monday: Night, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = monday.run(STRONG, WEAK)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/nights/")
    monkeypatch.setenv("WMTP_MLFLOW_UI", "https://mlflow.example.org/")
    ended(monday, "promote", [HOOK])
    ((_, news, _),) = heard.posts
    assert news["links"] == {
        "Airflow": "https://airflow.example.org/nights/dags/wmtp_daily/runs/monday/tasks/promote?try_number=1",
        "report": f"https://airflow.example.org/nights/wmtp/{run.prefix}/report.html",
        "MLflow": "https://mlflow.example.org/#/models/coder/versions/1",
    }


def test_mlflow_has_pages_where_it_is_a_server(environment: Environment) -> None:
    assert links.mlflow(environment) is None
    served = environment.model_copy(update={"mlflow_uri": "https://mlflow.example.org/"})
    assert links.mlflow(served, links.of_version("a b", "1")) == (
        "https://mlflow.example.org/#/models/a%20b/versions/1"
    )


def test_a_task_whose_process_died_is_told_of_by_the_scheduler(
    monday: Night, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = monday.environment.model_copy(update={"notices": (WebhookNotice.model_validate(HOOK),)})
    (notifier,) = notices.callbacks(environment)["on_failure_callback"]
    task = SimpleNamespace(dag_id="wmtp_daily", run_id="monday", task_id="train", log_url="http://airflow/x")
    notifier({"ti": task})  # as the DAG processor does, which knows of no exception
    ((_, news, _),) = heard.posts
    assert (news["event"], news["title"]) == ("failure", "wmtp_daily: train failed")
    assert news["sentence"].startswith("Its process ended without a word")
