"""The tritonserver that this process is a model's of: to end with it, and to end it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time

from .process_start import start_ticks

_POLL_SECONDS = 0.1
_KILL_AFTER_SECONDS = 2
# A number may be another process's by then: when it began tells, the 20th field of its stat behind its name. In a
# container the server may be its first process, which no signal from inside ends, SIGKILL neither; but the kernel's own
# does, when its processor time is up. The kernel looks at that when its clock ticks while the process runs, and one
# that only waits hardly does: so it is given signals to handle, until a tick meets it.
_KILL_LATER = """
goes_on() {{
    stat=$(cat /proc/{pid}/stat) || return
    set -- ${{stat##*) }}
    [ "$1" != Z ] && [ "${{20}}" = {started} ]
}}
sleep {seconds}
goes_on || exit
kill -9 {pid}
prlimit --pid {pid} --cpu=0:0 || exit
while goes_on; do
    i=0
    while [ $i -lt 20000 ] && kill -15 {pid}; do i=$((i+1)); done
    sleep 0.1
done
"""


class ServerProcess:
    """Made while it runs, by a model's `initialize`."""

    def __init__(self) -> None:
        self.pid = os.getppid()

    def end_with_it(self) -> None:
        """From now on this process is killed when the server ends. Triton's own way out may hang for ever, and an
        engine keeps its memory and its cores meanwhile."""
        threading.Thread(target=self._follow, name="server-watch", daemon=True).start()

    def end(self) -> None:
        """SIGTERM, and SIGKILL by somebody else after 2 s: this process may be gone before, since the signal makes the
        server end its models first, and what is under way in a dead engine would keep it for long."""
        try:
            started = start_ticks(self.pid)
        except OSError:
            return
        if os.getppid() != self.pid:
            return  # it has ended, and its number may be anybody's
        command = _KILL_LATER.format(seconds=_KILL_AFTER_SECONDS, pid=self.pid, started=started)
        quiet = subprocess.DEVNULL
        subprocess.Popen(["sh", "-c", command], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        os.kill(self.pid, signal.SIGTERM)

    def end_after_death(self, model: str) -> None:
        """Of that model's process."""
        # Straight to the log: Triton's logger takes its time, and the server may be gone before.
        sentence = f"Error: the {model}'s process died: the server ends, since it cannot answer any more"
        print(sentence, file=sys.stderr, flush=True)
        self.end()

    def _follow(self) -> None:
        self._wait()
        os.kill(os.getpid(), signal.SIGKILL)

    def _wait(self) -> None:
        try:
            file = os.pidfd_open(self.pid)
        except OSError:  # it has ended, or the kernel is older than 5.3
            while os.getppid() == self.pid:
                time.sleep(_POLL_SECONDS)
            return
        if os.getppid() == self.pid:  # and not another process of that number
            poll = select.poll()
            poll.register(file, select.POLLIN)
            poll.poll()
