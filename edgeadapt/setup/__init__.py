"""Native libraries built for the CPU at hand: what to ask the compiler for, and proof it runs."""

RECORD = "edgeadapt-build.json"
"""In a wheel's llama_cpp/: how it was built."""
