"""The platform's Job that makes databases, run as it is rendered, by an administrator with the rights that RDS gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from postgres_server import postgres

from scripts.charts import Release, objects, render

pytestmark = pytest.mark.usefixtures("helm")
NAMES = ("mlflow", "mlflow_auth", "airflow", "optuna")


@dataclass(frozen=True)
class Server:
    folder: Path
    data: Path
    script: str
    names: str

    def password(self, name: str, password: str) -> None:
        (self.folder / "admin" / name).write_text(password)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PGSERVICEFILE": str(self.folder / "admin" / "pg_service.conf"),
            "PASSWORDS": str(self.folder / "admin"),
            "DATABASES": self.names,
        }
        command = [sys.executable, "-c", self.script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def ask(self, user: str, password: str, database: str, query: str) -> list[tuple[object, ...]]:
        place = {"host": str(self.data), "port": 5432}
        connection = psycopg2.connect(user=user, password=password, dbname=database, **place)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("databases")
    with postgres() as (database, data):
        # The server must ask for the password, or a test of passwords would test nothing.
        (data / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        database.psql("CREATE ROLE chief LOGIN CREATEROLE CREATEDB PASSWORD 'the-masters-word'")
        database.psql("ALTER SYSTEM SET log_statement = 'all'")
        database.psql("SELECT pg_reload_conf()")
        (job,) = [item for item in objects(render(Release("ml-platform", "prod"))) if item["kind"] == "Job"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        names = {entry["name"]: entry["value"] for entry in container["env"]}["DATABASES"]
        made = Server(folder, data, container["args"][0], names)
        (folder / "admin").mkdir()
        (folder / "admin" / "pg_service.conf").write_text(
            f"[admin]\nhost={data}\ndbname=postgres\nuser=chief\npassword=the-masters-word\n"
        )
        for name in NAMES:
            made.password(name, f"first-of-{name}")
        first = made.run()
        assert first.returncode == 0, first.stderr
        yield made


def test_each_owner_works_in_its_own_database(server: Server) -> None:
    for name in NAMES:
        server.ask(name, f"first-of-{name}", name, "CREATE TABLE IF NOT EXISTS kept (n int)")
        assert server.ask(name, f"first-of-{name}", name, "SELECT count(*) FROM kept") == [(0,)]


def test_no_owner_may_connect_to_another_database(server: Server) -> None:
    for name in NAMES:
        for other in set(NAMES) - {name}:
            with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
                server.ask(name, f"first-of-{name}", other, "SELECT 1")


def test_the_administrator_owns_no_data_afterwards(server: Server) -> None:
    server.ask("mlflow", "first-of-mlflow", "mlflow", "CREATE TABLE IF NOT EXISTS secretive (n int)")

    with pytest.raises(psycopg2.Error, match="permission denied"):
        server.ask("chief", "the-masters-word", "mlflow", "SELECT * FROM secretive")


def test_a_second_run_changes_nothing_and_sets_a_new_password(server: Server) -> None:
    server.ask("optuna", "first-of-optuna", "optuna", "CREATE TABLE study (n int)")
    server.password("optuna", 'second\'s "odd" word%')
    try:
        again = server.run()
        assert again.returncode == 0, again.stderr
        assert server.ask("optuna", 'second\'s "odd" word%', "optuna", "SELECT count(*) FROM study") == [(0,)]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            server.ask("optuna", "first-of-optuna", "optuna", "SELECT 1")
    finally:
        server.password("optuna", "first-of-optuna")
        assert server.run().returncode == 0


def test_an_empty_password_is_refused(server: Server) -> None:
    server.password("airflow", "")
    try:
        ended = server.run()
        assert ended.returncode == 1
        assert "The password of airflow is empty" in ended.stderr
    finally:
        server.password("airflow", "first-of-airflow")


def test_the_servers_log_of_statements_shows_no_password(server: Server) -> None:
    logs = [file.read_text(errors="replace") for file in server.data.rglob("*log*") if file.is_file()]
    written = "\n".join(logs)

    assert "ROLE" in written, "the server must have logged statements"
    assert "first-of-" not in written
