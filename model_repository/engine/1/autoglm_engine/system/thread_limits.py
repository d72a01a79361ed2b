"""Whether the system lets this process start the threads that a runtime needs.

Found out by starting them: limits are the user's (`ulimit -u`), the container's (its pids), those of its parents, and
the address space that stacks take. A library that is refused a thread midway ends the process, or waits for ever.
"""

from __future__ import annotations

import threading

from autoglm_engine.errors import ArtifactError

ENGINE_THREADS = 16  # those that step, publish, compile guides and ask slow tiers, beside the runtime's own


def check_threads(num_threads: int) -> None:
    """`num_threads`: of the runtime, its caller's among them. Raises ArtifactError with how many there may be."""
    needed = num_threads - 1 + ENGINE_THREADS
    if (started := _max_threads(needed)) == needed:
        return
    fewer = started - ENGINE_THREADS + 1
    advice = f", or set num_threads to at most {fewer}" if fewer >= 1 else ""
    raise ArtifactError(
        f"the system lets this process start {started} of the {needed} threads that num_threads {num_threads} needs, "
        f"{ENGINE_THREADS} of them the engine's: raise the limit (ulimit -u, or the container's of pids){advice}"
    )


def _max_threads(wanted: int) -> int:
    """How many of them run at the same time."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=over.wait, name="count")
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):  # what Python says where the system refuses one
        pass
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return len(threads)
