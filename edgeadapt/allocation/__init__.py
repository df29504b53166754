"""Choosing each tensor's type so that a file of a given size loses least."""
