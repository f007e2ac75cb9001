"""A pipeline of toys in place of the real one, and Airflow's own task runner without a database."""
