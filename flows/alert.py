"""`python -m flows.alert [URL]`: let the server notice runs that were killed, and tell an address of failed runs."""

import argparse
import sys
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.server import configured_server, unreachable

TOLD, NOTICED = "Tell of a failed run", "Notice a run that was killed"
KILLED = "There is no heartbeat any more: its process was killed, or the machine is off."
RUNS: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
HEARTBEAT = "prefect.flow-run.heartbeat"
MISSED = 3
"""Heartbeats without which a run counts as killed: one or two may be lost where a server is busy."""
# As Slack, Mattermost and others read it; `tojson` quotes whatever a message holds.
PAYLOAD = (
    '{"text": {{ (flow.name ~ ", " ~ flow_run.name ~ ": " ~ flow_run.state.name ~ ". " '
    '~ (flow_run.state.message or "")) | tojson }}}'
)
NO_SERVER = (
    "Expected PREFECT_API_URL to name the server that is to tell, got none; run `prefect server start` in another "
    "terminal, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`."
)


def main(arguments: list[str] | None = None) -> int:
    """Make the automations, in place of earlier ones, and return the exit code: 0, or 1 after one sentence."""
    parser = argparse.ArgumentParser(prog="python -m flows.alert", description="Tell an address of runs that fail.")
    parser.add_argument(
        "url",
        nargs="?",
        help='what gets {"text": "…"} by POST, as an incoming webhook of Slack does; nothing is told without',
    )
    given = parser.parse_args(arguments)
    if given.url and not _is_address(given.url):
        sys.stderr.write(f"Expected an address such as https://hooks.slack.com/services/…, got {given.url!r}.\n")
        return 1
    server = configured_server()
    if problem := unreachable(server) if server else NO_SERVER:
        sys.stderr.write(f"{problem}\n")
        return 1
    with get_client(sync_client=True) as client:
        automations = [*([_telling(given.url)] if given.url else []), _noticing()]
        changed = [automation for automation in automations if not _is_there(automation)]
        for automation in changed:
            _remove(client, automation.name)
    for automation in changed:
        automation.create()
    for automation in automations:
        sys.stdout.write(f"{automation.name}: on\n")
    return 0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that does not close, say
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _telling(url: str) -> Automation:
    webhook = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    block: Any = webhook.save("failed-run", overwrite=True)
    return Automation(
        name=TOLD,
        description="A flow run that failed or crashed is told to the address of the block webhook/failed-run.",
        trigger=EventTrigger(
            match=RUNS,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=PAYLOAD)],
    )


def _noticing() -> Automation:
    """Return what calls a run crashed that goes on without a heartbeat: its process cannot say so itself."""
    seconds = MISSED * PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    return Automation(
        name=NOTICED,
        description=f"A flow run without a heartbeat for {seconds} s, whose process was killed, is called crashed.",
        trigger=EventTrigger(
            match=RUNS,
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDED},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=KILLED, force=False)],
    )


def _is_there(automation: Automation) -> bool:
    """Return whether the server has this very automation: made anew, it would forget the runs that it waits for."""
    try:
        known: Any = Automation.read(name=automation.name)
    except ValueError:  # there is none
        return False
    return bool(known.enabled and (known.trigger, known.actions) == (automation.trigger, automation.actions))


def _remove(client: SyncPrefectClient, name: str) -> None:
    """Remove earlier automations of this name."""
    found = client._client.post(  # the synchronous client has no method for automations
        "/automations/filter", json={"automations": {"name": {"any_": [name]}}}
    )
    for automation in found.raise_for_status().json():
        client._client.delete(f"/automations/{automation['id']}").raise_for_status()


if __name__ == "__main__":
    sys.exit(main())
