"""A comparison's trials on a Ray cluster: each is a task that is done again if its node is lost.

What the machines need: the same edgeadapt with what the methods need, and the same Python. With a
disk that all share, everything lies in the comparison's folder as if one machine had done it, and
a trial that lost its node goes on from its last checkpoint. Elsewhere a machine finds base and data
by what the recipe calls them, which must hash to the same; it makes the base's files again, keeps
its stages in a folder of its own for each trial (`compare/` in its cache), and only the figures
come back: artifacts stay where they were made.
"""
