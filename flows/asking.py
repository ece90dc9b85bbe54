"""Run `python -m tasks …` or `dvc …` in a process forked from the warm one (flows/warm.py), as if it were this one.

It is handed this one's folder, environment, files and signals, and this one ends as it ends. What else is asked of
`python`, and everything where no warm process answers, is run by itself.
"""

import array
import json
import os
import signal
import socket
import sys


def main(address: str, name: str, *words: str) -> None:
    """Have the program run and end as it ends."""
    with socket.socket(socket.AF_UNIX) as waiting:
        try:
            if name == "python" and words[:2] != ("-m", "tasks"):
                raise FileNotFoundError  # the warm process has imported what another program may want to set up first
            waiting.connect(address)
        except OSError:
            os.execv(sys.executable, [sys.executable, *(["-m", "dvc"] if name == "dvc" else []), *words])  # noqa: S606 - as asked
        heeded = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # as by what a shell runs in the background
        asked = json.dumps([name, words, os.getcwd(), dict(os.environ), heeded]).encode()
        files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        waiting.sendmsg([len(asked).to_bytes(4, "big")], files)
        waiting.sendall(asked)
        for number in (signal.SIGTERM, *([signal.SIGINT] if heeded else [])):
            signal.signal(number, lambda number, _: waiting.sendall(number.to_bytes(4, "big")))
        try:
            ended = waiting.recv(4)
        except ConnectionResetError:
            ended = b""
    if not ended:
        sys.exit(f"Expected the process that runs `{name}` to say how it ended, got no answer: it was killed.")
    code = int.from_bytes(ended, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
