"""Bundles in registries: push to and pull from OCI registries and Hugging Face repositories."""
