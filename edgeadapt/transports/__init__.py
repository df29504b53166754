"""Ways to another machine: run a benchmark there, and bring its figures back.

`bench.bench_on` is what to call. A transport is a module with a class that has the methods of
`base.Transport`, and a line in `base.SCHEMES`.
"""
