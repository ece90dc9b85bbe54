"""Order, concurrency, retries and schedules; and Prefect's settings, which it reads once, when it is imported."""

import os

from tasks.common.interruption import say_interruptions

say_interruptions()

DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",  # without a configured server, a temporary one
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # Prefect's 20 s are too few on a busy machine
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
