"""Importance matrices from a user's own text: what the model's layers see of it."""

from edgeadapt.calibration.build import CHUNKS, cached_imatrix, make_imatrix, pending_imatrix

__all__ = ["CHUNKS", "cached_imatrix", "make_imatrix", "pending_imatrix"]
