"""Lenses: what the model would say if it ended at some layer."""

from jaxinterp.methods.lenses.logit_lens import LogitLens, logit_lens

__all__ = ["LogitLens", "logit_lens"]
