"""A fixed beginning of every conversation, run through the model once and started from after that.

`prompt` is the file that says what it is and for which artifact, `opening` finds the tokens that it
is, `state` keeps the KV cache after it, `make` computes both and `start` begins there.
"""
