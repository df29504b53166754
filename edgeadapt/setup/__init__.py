"""Native libraries built for the CPU at hand: what to ask the compiler for, and proof it runs."""
