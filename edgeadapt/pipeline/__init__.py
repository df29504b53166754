"""`edgeadapt run`: a recipe's stages, each in a folder named by the hash of its inputs."""

from edgeadapt.pipeline.run import run_recipe

__all__ = ["run_recipe"]
