"""Adapter training with TRL and PEFT: methods, settings, checkpoints, held-out scores."""
