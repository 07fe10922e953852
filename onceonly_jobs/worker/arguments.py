"""What a function takes, and a call's `args` as it takes them: checked before anything is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.errors import ConfigError

RUN_ID = "run_id"
"""Clients put it among the args; a function that does not take it need not know."""


class BadArguments(Exception):
    """A call's args are not what the function takes. Says which, and why."""


class Arguments:
    """The parameters of a function, without a first one of the context's type.

    Raises ConfigError, with the function's name, for a signature that JSON can't be bound to.
    """

    def __init__(self, function: Callable[..., Any], context: type) -> None:
        try:
            parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        except (NameError, TypeError, ValueError, SyntaxError, AttributeError) as error:
            raise ConfigError(f"{_name(function)}: its signature can't be read: {error}") from None
        first = parameters[0] if parameters else None
        self.with_context = first is not None and first.annotation is context and first.kind in _POSITIONAL
        self._names: dict[str, inspect.Parameter] = {}
        self._open = False
        for number, parameter in enumerate(parameters[1:] if self.with_context else parameters):
            self._take(function, f"p{number}", parameter)
        self._takes_run_id = self._open or RUN_ID in {each.name for each in self._names.values()}
        self._model = self._made(function)

    def _take(self, function: Callable[..., Any], field: str, parameter: inspect.Parameter) -> None:
        if parameter.kind is parameter.VAR_KEYWORD:
            self._open = True
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigError(f"{_name(function)}: args are given by name, which {parameter} does not take")
        elif isinstance(parameter.default, FieldInfo):
            raise ConfigError(f"{_name(function)}: {parameter.name}: use Annotated[..., Field(...)]")
        else:
            self._names[field] = parameter

    def _made(self, function: Callable[..., Any]) -> type[BaseModel]:
        """A model whose fields have names of their own: a parameter may be called what a model's method is."""
        fields: dict[str, Any] = {field: _field(parameter) for field, parameter in self._names.items()}
        config = ConfigDict(extra="allow" if self._open else "forbid")
        try:
            return create_model(function.__name__, __config__=config, **fields)
        except (PydanticUserError, TypeError, NameError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(f"{_name(function)}: args can't be checked against it: {why}") from None

    def bind(self, args: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the function is called with. Raises BadArguments."""
        given = args if self._takes_run_id else {name: args[name] for name in args if name != RUN_ID}
        try:
            model = self._model.model_validate_json(compact_json(given))
        except ValidationError as error:
            raise BadArguments(_complaint(error)) from None
        except Exception as error:  # a type's own validator may raise anything
            raise BadArguments(f"{type(error).__name__}: {error}") from error
        bound = {
            parameter.name: getattr(model, field)
            for field, parameter in self._names.items()
            if field in model.model_fields_set
        }
        return {**(model.model_extra or {}), **bound}


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _field(parameter: inspect.Parameter) -> tuple[Any, Any]:
    """What is not given is left to the function's own default, so here it only has to be some."""
    annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
    if parameter.default is parameter.empty:
        return annotation, Field(alias=parameter.name)
    return annotation, Field(default=None, alias=parameter.name)


def _complaint(error: ValidationError) -> str:
    """Where each mistake is, and what it is, without what was given."""
    mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'args'}: {each['msg']}" for each in mistakes)


def _name(function: Callable[..., Any]) -> str:
    return f"tool function {getattr(function, '__name__', function)!r}"
