"""verify: whether a checkpoint computes what it should, by identities that need no reference and against transformers."""

from jaxinterp.runs.verify.verdict import Check, SiteError, Verdict
from jaxinterp.runs.verify.verify import verify

__all__ = ["Check", "SiteError", "Verdict", "verify"]
