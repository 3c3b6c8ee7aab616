"""Pins a measurement to as many cores as it has threads."""

import os


def pin(threads: int) -> tuple[int, ...]:
    """Pin this process to the last `threads` of its cores; empty if the system cannot or has too few.

    The last, because systems put interrupts and their own services on the first.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    usable_cores = sorted(os.sched_getaffinity(0))
    if threads > len(usable_cores):
        return ()
    cores = tuple(usable_cores[-threads:])
    os.sched_setaffinity(0, cores)
    return cores


def describe_pinning(cores: tuple[int, ...]) -> str:
    """For details and messages: `pinned to cores 2, 3`, or why not."""
    if not cores:
        return "not pinned: the system does not offer it, or has fewer cores than threads"
    return f"pinned to core{'' if len(cores) == 1 else 's'} {', '.join(map(str, cores))}"
