"""What a prompt alone can do: examples put before a question, and passages put beside it.

A prompting is a transform of examples, so whatever scores or asks a dataset measures it as it
measures a tuned model, on the same questions and the same runtime.
"""

from edgeadapt.prompting.base import Applied, Plain, Prompting, apply

__all__ = ["Applied", "Plain", "Prompting", "apply"]
