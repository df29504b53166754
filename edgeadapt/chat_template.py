"""Render chat templates the way transformers does, without transformers.

Templates come with models and are run in Jinja's immutable sandbox: they can format text and
nothing else. Conventions (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`,
`tojson` without HTML escapes) are those of transformers' chat templating documentation.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import functools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from edgeadapt.errors import InputError
from edgeadapt.extras import need

if TYPE_CHECKING:
    import jinja2

Message = dict[str, Any]
"""One chat message: `role` and `content`, and whatever else the template reads."""


_other_now: contextvars.ContextVar[datetime.datetime | None] = contextvars.ContextVar(
    "other_now", default=None
)


@contextlib.contextmanager
def clock_at(moment: datetime.datetime) -> Iterator[None]:
    """Let templates that write the date believe that it is another one."""
    token = _other_now.set(moment)
    try:
        yield
    finally:
        _other_now.reset(token)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """Compiling takes as long as rendering hundreds of conversations."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: (
        _other_now.get() or datetime.datetime.now()
    ).strftime(form)
    return environment.from_string(template)


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    special_tokens: dict[str, str],
    tools: Sequence[dict[str, Any]] | None = None,
) -> str:
    """Text of a conversation under a chat template.

    Args:
        template: Jinja source, as shipped with the model.
        messages: the conversation.
        add_generation_prompt: end with the opening of an assistant turn.
        special_tokens: `bos_token`, `eos_token`, ... as the template may name them.
        tools: JSON schemas of functions on offer.

    Raises:
        InputError: the template is malformed or rejects these messages.
    """
    need("jinja2", "rendering a chat template")
    import jinja2

    try:
        return _compile(template).render(
            messages=list(messages),
            tools=None if tools is None else list(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise InputError(f"the chat template rejects this conversation: {error}") from error
