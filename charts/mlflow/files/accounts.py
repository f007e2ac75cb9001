"""Give the administrator and the pipeline their accounts, with the passwords that the Secret holds now.

Safe to repeat: a password that was changed in the Secret is set at the next upgrade. Other accounts stay as they are.
"""

import os

from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

store = SqlAlchemyStore()
store.init_db("postgresql+psycopg2://?service=mlflow_auth")
for account, is_admin in (("ADMIN", True), ("PIPELINE", False)):
    name, password = os.environ[f"{account}_USERNAME"], os.environ[f"{account}_PASSWORD"]
    if store.has_user(name):
        store.update_user(name, password=password, is_admin=is_admin)
    else:
        store.create_user(name, password, is_admin=is_admin)
