"""Serve the counters that the server's workers share, on a port of their own.

MLflow's own /metrics asks for an administrator's password, which Prometheus must not hold.
"""

import os
import signal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
start_http_server(int(os.environ["METRICS_PORT"]), registry=registry)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
