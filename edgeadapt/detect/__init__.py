"""A profile for the machine that this runs on: its CPU as the system tells, its memory measured."""

from edgeadapt.detect.profile import detect_profile, profile_yaml

__all__ = ["detect_profile", "profile_yaml"]
