"""Datasets: reading them, turning them into tokens, and the demo's own."""
