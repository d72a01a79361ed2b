"""Says what to change about a bottleneck: the setting or export option, and the figure that would move."""

from __future__ import annotations

import math

from .bottleneck import CPU_MARK, Measurements, Resource, Verdict

_FULL_THREAD = 0.85  # of a core, from which on a thread that computes counts as busy all the time


def explain(verdict: Verdict, measured: Measurements) -> str:
    """Two or three sentences, then one on what else is at its mark."""
    sentences = {
        Resource.CPU: _cpu,
        Resource.MEMORY: _memory,
        Resource.NETWORK: _network,
        Resource.GPU: _gpu,
        Resource.SLOTS: _slots,
        Resource.QUEUE: _queue,
        Resource.CLIENT: _client,
        Resource.NOTHING: _nothing,
    }[verdict.bottleneck](measured)
    hint = _thread_hint(measured) if verdict.bottleneck in (Resource.SLOTS, Resource.NOTHING) else ""
    return " ".join(part for part in (sentences, hint, _also(verdict)) if part)


def _cpu(m: Measurements) -> str:
    assert m.cpu_share is not None and m.cores is not None, "the CPU was measured to be at its mark"
    busy = f"The CPU is the bottleneck: {m.cpu_share:.0%} of {m.cores:g} cores are in use"
    name, used = max(m.cpu_cores.items(), key=lambda item: item[1])
    match name:
        case "others":
            return (
                f"{busy}, {used:.2f} of them by programs that are not the server. Stop those, or give the "
                "server cores of its own: every stage shrinks. Slots and settings will not."
            )
        case "client":
            return (
                f"{busy}, {used:.2f} of them by this load generator. Drive the server from another machine "
                "with --url, or with longer answers: requests/s and the network stage move."
            )
        case "tritonserver" | "detokenizer":
            return (
                f"{busy}, {used:.2f} of them by {name}, which moves responses. Lower max_events_per_second, or leave "
                "streaming out where nobody reads along, so that tokens share a response: tokens/s and the "
                "network stage move."
            )
        case _:
            return (
                f"{busy}, {used:.2f} of them by {name}{_disturbed(m)}. {_less_work(m.longest_stage)} {_more_at_once(m)}"
            )


def _more_at_once(m: Measurements) -> str:
    """Requests in one step share the reading of the weights, so a CPU that is busy with few is not yet at its best."""
    if m.slots is not None and m.slots_busy is not None and m.slots_busy < m.slots / 2:
        return (
            f"With {m.slots_busy:.1f} of {m.slots} slots busy, a larger --concurrency still moves tokens/s, at a "
            "longer latency."
        )
    return "More slots or more requests at once will not help."


def _disturbed(m: Measurements) -> str:
    """Said where other programs take a tenth of the cores or more."""
    others = m.cpu_cores.get("others", 0.0)
    is_much = m.cores is not None and others >= 0.1 * m.cores
    return f" and {others:.2f} by programs that are not the server, so stop those and look again" if is_much else ""


def _less_work(stage: str) -> str:
    if stage == "prefill":
        return (
            "Let prompts share a prefix (prefix_reuse) or shorten them, else use more cores (num_threads 0 "
            "takes all) or a second server: time to first token and the prefill stage move."
        )
    return (
        "Export with --precision int8 --runtime native if it is not so yet, else use more cores (num_threads "
        "0 takes all) or a second server: tokens/s and the decode stage move."
    )


def _memory(m: Measurements) -> str:
    assert m.memory_share is not None and m.memory_bytes is not None, "memory was measured to be at its mark"
    return (
        f"Memory is the bottleneck: {m.memory_share:.0%} of {m.memory_bytes / 2**30:.1f} GiB are in use, so "
        "there is no room for more slots and swapping is near. Export with a smaller --max-length or "
        "--max-slots (keys and values take their product) or with --precision int8: the memory of "
        "the engine moves."
    )


def _network(m: Measurements) -> str:
    return (
        f"The network is the bottleneck: {m.network_share:.0%} of {m.interface} is in use. Compress "
        "(Client(gzip=True)), or lower max_events_per_second so that tokens share a response, or take a "
        "faster line: the network stage and time to first token move."
    )


def _gpu(m: Measurements) -> str:
    return (
        f"The GPU is the bottleneck: {m.gpu} is busy {m.gpu_utilisation:.0%} of the time. Export with "
        "--precision fp8 or int4, which read less memory a token, or add a second one with a server of "
        "its own: tokens/s and the decode stage move."
    )


def _slots(m: Measurements) -> str:
    assert m.slots is not None and m.waiting is not None and m.cpu_share is not None, "slots were measured"
    return (
        f"Slots are the bottleneck: {m.waiting:.1f} requests wait for one of {m.slots} while "
        f"{1 - m.cpu_share:.0%} of the CPU is idle. Export with a larger --max-slots (at most "
        f"{m.concurrency} are asked for at once): the queue stage and time to first token fall, and "
        f"tokens/s grows until the CPU is at {CPU_MARK:.0%}."
    )


def _queue(m: Measurements) -> str:
    waiting = f"{m.waiting:.1f} requests" if m.waiting is not None else "requests"
    return (
        f"The queue is the bottleneck: {waiting} wait while all slots are busy, {m.queue_share:.0%} of the "
        "requests' time. Run this on the server's machine to see whether its CPU has room for a larger "
        "export --max-slots; if it has none, send fewer at once, add a server, or bound the wait "
        "with max_queue and deadline_ms: time to first token falls."
    )


def _client(m: Measurements) -> str:
    assert m.client_cores is not None, "this client was measured"
    return (
        f"This load generator is the bottleneck: it uses {m.client_cores:.0%} of the one core that it can. "
        "Run several at once, or ask for longer answers with --max-tokens: requests/s moves."
    )


def _nothing(m: Measurements) -> str:
    if m.slots is None:
        return (
            f"Nothing is saturated: the client did not ask enough with {m.concurrency} at once. Run again "
            "with a larger --concurrency: requests/s and tokens/s move until something is at its mark."
        )
    more = max(2 * m.concurrency, 2 * m.slots)
    return (
        f"Nothing is saturated: the client did not ask enough, {m.concurrency} at once for {m.slots} slots. "
        f"Run again with --concurrency {more}: requests/s and tokens/s move until something is at its mark."
    )


def _thread_hint(m: Measurements) -> str:
    """An engine that fills a whole number of cores, and not all, may be held back by its own setting."""
    used = m.cpu_cores.get("engine", 0.0)
    threads = math.ceil(used)
    if m.cores is None or threads >= m.cores or used < _FULL_THREAD * threads or not threads:
        return ""
    return f"The engine keeps {used:.2f} cores busy: if num_threads is {threads}, set it to 0 first."


def _also(verdict: Verdict) -> str:
    if verdict.level:
        return f"As loaded: {_list(verdict.level)}."
    rest = [
        resource
        for resource in verdict.also
        if resource is not Resource.QUEUE or verdict.bottleneck is not Resource.SLOTS
    ]
    return f"Also at its mark: {_list(rest)}." if rest else ""


def _list(resources: tuple[Resource, ...] | list[Resource]) -> str:
    return ", ".join(resource.value for resource in resources)
