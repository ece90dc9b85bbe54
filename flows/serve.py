"""`python -m flows.serve`: run the pipeline on a schedule on this machine, for as long as this process lives."""

import argparse
import sys

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

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
    server = configured_server()
    if problem := unreachable(server) if server else NO_SERVER:
        sys.stderr.write(f"{problem}\n")
        return 1
    schedule = {"interval": given.every} if given.every else {"cron": given.cron}
    # A run that is due while the last one is still busy would only wait for its locks: leave it out.
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    pipeline.serve(name="served", global_limit=one, **schedule)
    return 0


if __name__ == "__main__":
    sys.exit(main())
