"""Run a command, and kill its whole process group as soon as the process that started this one is gone.

The parent holds the other end of standard input and never writes, so the end of that file is the parent's death, also
by `kill -9`. Linux's PR_SET_PDEATHSIG would fire at the end of the *thread* that started the child, end the direct
child only, and need code between fork and exec in a process with many threads.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command in the arguments and return its exit code, 128 + the signal if one ended it."""
    # Outlive the command when the group is asked to end, and wait for it: DVC takes a process that is dead but was
    # never waited for as the living owner of its locks, and not every container has an init that waits.
    signal.signal(signal.SIGTERM, lambda *_: None)
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    orphaned = threading.Event()
    threading.Thread(target=_end_with_parent, args=(command, orphaned), daemon=True).start()
    code = command.wait()
    if orphaned.is_set():
        os.killpg(os.getpid(), signal.SIGKILL)  # its own group's number only if it leads one, so never a user's shell
    return code if code >= 0 else 128 - code


def _end_with_parent(command: "subprocess.Popen[bytes]", orphaned: threading.Event) -> None:
    os.read(sys.stdin.fileno(), 1)
    orphaned.set()
    command.kill()


if __name__ == "__main__":
    sys.exit(main())
