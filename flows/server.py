"""Whether the configured Prefect server answers, asked once and quickly."""

import httpx
from prefect.settings import PREFECT_API_URL

PATIENCE_SECONDS = 5.0


def configured_server() -> str | None:
    """Return the address of the configured server, None for a temporary one."""
    address: str | None = PREFECT_API_URL.value()
    return address


def unreachable(address: str) -> str | None:
    """Return one sentence on how a server cannot be reached, None if it answers.

    Args:
        address: The server's PREFECT_API_URL.
    """
    try:
        httpx.get(f"{address}/health", timeout=PATIENCE_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return (
            f"Expected a Prefect server at PREFECT_API_URL={address}, got '{error}'; "
            "start one with `prefect server start`, or unset PREFECT_API_URL."
        )
    return None
