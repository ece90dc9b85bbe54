"""`python -m flows.serve`: run the pipeline on a schedule on this machine, for as long as this process lives."""

import argparse
import math
import sys
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule

from flows.pipeline import pipeline
from flows.server import configured_server, unreachable

NO_SERVER = (
    "Expected PREFECT_API_URL to name a server that keeps the schedule, got none; run `prefect server start` in "
    "another terminal, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`."
)


def main(arguments: list[str] | None = None) -> int:
    """Serve the pipeline until interrupted, and return the exit code: 0, or 1 after one sentence."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description="Run the pipeline on a schedule.")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", default="0 3 * * *", help="when to run; by default at three every night")
    when.add_argument("--every", type=float, metavar="SECONDS", help="run at this interval instead")
    given = parser.parse_args(arguments)
    try:
        schedule = _schedule(given.cron, given.every)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server = configured_server()
    if problem := unreachable(server) if server else NO_SERVER:
        sys.stderr.write(f"{problem}\n")
        return 1
    # A run that is due while the last one is still busy would only wait for its locks: leave it out.
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    pipeline.serve(name="served", global_limit=one, **schedule)
    return 0


def _schedule(cron: str, every: float | None) -> dict[str, Any]:
    """Return when to run, in Prefect's words.

    Raises:
        ValueError: For an interval or a cron line that is none.
    """
    if every is None:
        try:
            CronSchedule(cron=cron)
        except ValueError as error:
            raise ValueError(
                f"Expected five fields as of cron after --cron, such as '0 3 * * *', got {cron!r}."
            ) from error
        return {"cron": cron}
    if not 1 <= every < math.inf:
        raise ValueError(f"Expected --every of at least 1 second, got {every:g}.")
    return {"interval": every}


if __name__ == "__main__":
    sys.exit(main())
