"""The errors that jaxinterp raises on purpose: each one is a clear sentence about what the caller passed."""


class JaxinterpError(Exception):
    """Base of every error raised on purpose; the command line prints it without a traceback."""


class InputError(JaxinterpError, ValueError):
    """An argument does not fit: unknown site, wrong shape, a layer out of range, an answer of two tokens."""


class CheckpointError(JaxinterpError, ValueError):
    """A checkpoint cannot be read: missing, truncated, misshapen or not understood."""


class FetchError(JaxinterpError, OSError):
    """Weights could not be fetched: no network, wrong hash, no room on the disk."""


class MemoryPlanError(JaxinterpError, MemoryError):
    """A run was refused before it started because it cannot fit; the message says what would."""
