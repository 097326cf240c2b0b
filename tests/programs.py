"""How many programs were compiled: compile counts are tests here, times are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.monitoring


@contextmanager
def compiled() -> Iterator[list[str]]:
    """The programs that XLA compiles (or fetches from its cache) meanwhile."""
    events: list[str] = []

    def note(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    listener: Any = note
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def traces(jitted: Any) -> int:
    """How many signatures a jitted function has been compiled for."""
    return jitted._cache_size()
