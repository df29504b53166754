"""What a person or a program wrote, checked against a pydantic model; its mistakes named singly."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edgeadapt.errors import CorruptFileError, InputError

Model = TypeVar("Model", bound=BaseModel)


def parse_yaml(text: str, origin: str, model: type[Model]) -> Model:
    """Check YAML text against `model`; `origin` names the text in errors.

    Raises:
        InputError: it is not YAML, or a field is missing, unknown or wrong; names the first.
    """
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(f"{origin} is not valid YAML{where}: {problem}") from error
    except (ValueError, RecursionError) as error:  # a date that is none, endless nesting
        raise InputError(f"{origin} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        fields = ", ".join(f"`{name}:`" for name in list(model.model_fields)[:3])
        raise InputError(f"{origin} is not a {model.__name__}; expected {fields} and so on")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {first_problem(error)}") from error


def validated(value: Any, origin: str, model: type[Model]) -> Model:
    """Check what a program wrote against `model`; `origin` names it in errors.

    Raises:
        CorruptFileError: it does not fit; names the first field that is wrong.
    """
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        told = first_problem(error) if isinstance(error, ValidationError) else "nested too deeply"
        raise CorruptFileError(f"{origin}: {told}") from error


def first_problem(error: ValidationError) -> str:
    """pydantic's first complaint, as `field: what is wrong`; misspelt names come first."""
    problems = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    problem = problems[0]
    field = ".".join(str(part) for part in problem["loc"]) or "the whole"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such field"
    elif problem["type"] not in {"missing", "value_error"}:
        message += f", found {problem['input']!r:.60}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {message}{more}"
