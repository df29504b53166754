"""How well a torch model predicts the scored tokens of a dataset."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeadapt.console import progress
from edgeadapt.data.encode import Encoded
from edgeadapt.extras import need
from edgeadapt.training.world import ALONE, World

_BATCH_TOKENS = 512
"""Padded tokens in a batch."""

_BATCH_SCORED = 128
"""Scored tokens in a batch; their logits take this times the vocabulary times 4 bytes. Buffers of
100 MB and more are given back to the system after each use and cost as much as the arithmetic."""

_wanted: contextvars.ContextVar[Any] = contextvars.ContextVar("_wanted", default=None)
"""The scored positions of the batch that this thread runs."""


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood over the scored tokens of a dataset, in nats."""

    examples: int
    tokens: int
    nll_sum: float

    @property
    def nll(self) -> float:
        """Mean over the tokens."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(min(self.nll, 700.0))

    def record(self) -> dict[str, float]:
        """As JSON."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "nll_sum": self.nll_sum,
            "nll": self.nll,
            "perplexity": self.perplexity,
        }


def score_model(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    title: str = "held-out loss",
    world: World = ALONE,
) -> Score:
    """Score a causal language model; its training mode is restored afterwards.

    Args:
        model: a transformers model, or a PEFT model around one.
        encoded: the dataset; only its scored tokens count.
        title: of the progress bar.
        world: processes that call this together; each scores a share and has the sum.
    """
    torch = need("torch", "scoring a model")
    total = 0.0
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            only_predicting(model),
            progress(title, len(encoded)) as advance,
        ):
            every = list(batches(encoded))
            for start in range(0, len(every), world.size):
                together = every[start : start + world.size]
                # Of a sharded model each runs as many: it has weights that the others need.
                mine = together[min(world.rank, len(together) - 1)]
                logits, targets = batch_logits(model, mine)
                losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                if world.rank < len(together):
                    total += float(losses.double().sum())
                advance(sum(len(batch) for batch in together))
    finally:
        model.train(was_training)
    tokens = sum(example.n_scored for example in encoded)
    return Score(len(encoded), tokens, world.total(total))


def batches(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Examples of like length together, to pad little; the sum does not depend on the order."""
    batch: list[Encoded] = []
    for example in sorted(encoded, key=lambda example: -len(example.ids)):
        padded = (len(batch) + 1) * len((batch or [example])[0].ids)
        scored = sum(entry.n_scored for entry in (*batch, example))
        if batch and (padded > _BATCH_TOKENS or scored > _BATCH_SCORED):
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def batch_logits(model: Any, batch: Sequence[Encoded]) -> tuple[Any, Any]:
    """What a model predicts for the scored tokens of a batch, and the tokens themselves.

    Several threads may run batches of one model at a time.

    Args:
        model: a transformers model, or a PEFT model around one, within `only_predicting`.
        batch: examples, the longest first.

    Returns:
        Logits in float32, shape (scored tokens, vocabulary), example by example; and token ids,
        shape (scored tokens,).
    """
    torch = need("torch", "scoring a model")
    device = next(model.parameters()).device
    shape = (len(batch), len(batch[0].ids))
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    scored = torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(batch):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = 1
        scored[row, :length] = torch.tensor(example.scored)
    ids, mask, scored = ids.to(device), mask.to(device), scored.to(device)
    with predicting(scored):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[0].float(), ids[scored]


@contextlib.contextmanager
def only_predicting(model: Any) -> Iterator[None]:
    """Let the output layer of a model heed `predicting`.

    Most positions are not scored, and the output layer is a third of a small model.

    Args:
        model: a transformers model, or a PEFT model around one.
    """

    def select(_module: Any, hidden: tuple[Any, ...]) -> tuple[Any, ...] | None:
        scored = _wanted.get()
        if scored is None:
            return None
        text = hidden[0][:, -scored.shape[1] :]  # a soft prompt comes before it
        return (text[:, :-1][scored[:, 1:]][None], *hidden[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def predicting(scored: Any) -> Iterator[None]:
    """Have this thread's batch answered only before scored tokens: logits (1, scored, vocab).

    Args:
        scored: boolean, shape (batch, tokens): which tokens are predicted and scored.
    """
    token = _wanted.set(scored)
    try:
        yield
    finally:
        _wanted.reset(token)
