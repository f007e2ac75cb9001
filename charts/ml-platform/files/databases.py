"""Make each database, and the role of the same name that owns it. Safe to repeat; a changed password is set.

Only a hash of a password leaves this process, so that no log of a statement shows one.
"""

import os
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import encrypt_password

folder = Path(os.environ["PASSWORDS"])
connection = psycopg2.connect("service=admin")
connection.autocommit = True
with connection.cursor() as cursor:

    def execute(text: str, *names: str, **literals: str) -> None:
        """Run a statement with names and texts quoted as PostgreSQL wants them."""
        parts = {key: sql.Literal(value) for key, value in literals.items()}
        cursor.execute(sql.SQL(text).format(*map(sql.Identifier, names), **parts))

    for name in os.environ["DATABASES"].split(","):
        password = (folder / name).read_text()
        if not password:
            raise SystemExit(f"The password of {name} is empty. Mend its secret.")
        hashed = encrypt_password(password, name, scope=connection, algorithm="scram-sha-256")
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
        verb = "ALTER" if cursor.fetchone() else "CREATE"
        execute(verb + " ROLE {} LOGIN PASSWORD {hashed}", name, hashed=hashed)
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if not cursor.fetchone():
            # RDS's administrator is no superuser: it may give a database only to a role that it is a member of.
            execute("GRANT {} TO CURRENT_USER", name)
            execute("CREATE DATABASE {} OWNER {}", name, name)
            execute("REVOKE {} FROM CURRENT_USER", name)
        # The owner keeps its rights; any other role loses CONNECT, which PostgreSQL grants to all.
        cursor.execute("SELECT pg_catalog.has_database_privilege('public', %s, 'CONNECT')", (name,))
        if cursor.fetchone() == (True,):
            execute("GRANT {} TO CURRENT_USER", name)
            execute("REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
            execute("REVOKE {} FROM CURRENT_USER", name)
