"""A command's options as a dataclass. argparse's options are made from its fields.

A field made by `option` is an option. A field whose type is a dataclass holds that dataclass's options. Other fields are no
options.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def option(
    help_text: str | Callable[[], str] | None,
    *names: str,
    default: Any = dataclasses.MISSING,
    one_of: str = "",
    not_with: str = "",
    **more: Any,
) -> Any:
    """A field that is an option.

    help_text: as argparse shows it, or a function that gives it as the command starts.
    names: of the option. By default the field's own, with dashes. A name without dashes makes a positional argument.
    default: the option's value where it is not given. It may be a function that gives it, for what the environment says.
        Without a default the option must be given.
    one_of: exactly one of the options with the same text here must be given.
    not_with: at most one of the options with the same text here may be given.
    more: further arguments of `add_argument`, such as choices, metavar or type. `choices` may be a function that gives them as
        the command starts. The rest follows from the field's type: a bool is a flag, a tuple takes one value or more.
    """
    metadata = {
        "option": {"help": help_text, **more},
        "names": names,
        "group": (one_of or not_with, bool(one_of)),
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class DefaultsShown(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where there is one and the help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        complete = action.default in (None, False, ()) or "(default" in (action.help or "")
        return action.help if complete else super()._get_help_string(action)


def add_options(parser: argparse.ArgumentParser, kind: type, **defaults: Any) -> None:
    """Add the options of the dataclass `kind` to a parser. defaults: this command's own defaults, by field."""
    groups: dict[str, argparse._ActionsContainer] = {}
    for field, hint in _fields(kind):
        if dataclasses.is_dataclass(hint):
            add_options(parser, typing.cast(type, hint), **defaults)
        elif "option" in field.metadata:
            group, must = field.metadata["group"]
            if group and group not in groups:
                groups[group] = parser.add_mutually_exclusive_group(required=must)
            to = groups[group] if group else parser
            _add(to, field, hint, defaults.get(field.name, _default_of(field)))


def _add(to: argparse._ActionsContainer, field: dataclasses.Field, hint: Any, default: Any) -> None:
    """Add the option of a field of that type."""
    how = _of_type(hint) | field.metadata["option"]
    how |= {name: how[name]() for name in ("choices", "help") if callable(how.get(name))}
    names = field.metadata["names"] or (f"--{field.name.replace('_', '-')}",)
    if not names[0].startswith("-"):
        to.add_argument(field.name, **how)
    elif default is dataclasses.MISSING:
        to.add_argument(*names, dest=field.name, required=True, **how)
    else:
        to.add_argument(*names, dest=field.name, default=default, **how)


def options_of(kind: type[Kind], args: argparse.Namespace) -> Kind:
    """The options that a parser with `add_options` has read."""
    values: dict[str, Any] = {}
    for field, hint in _fields(kind):
        if dataclasses.is_dataclass(hint):
            values[field.name] = options_of(typing.cast(type, hint), args)
        elif "option" in field.metadata:
            value = getattr(args, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Each field of a dataclass with its type."""
    hints = typing.get_type_hints(kind)
    return ((field, hints[field.name]) for field in dataclasses.fields(kind))


def _default_of(field: dataclasses.Field) -> Any:
    """A field's default; MISSING where the option must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _of_type(hint: Any) -> dict[str, Any]:
    """What a field's type says to argparse."""
    # Such as int | None.
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if hint is bool:
        return {"action": "store_true"}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "+", "type": typing.get_args(hint)[0]}
    return {"type": hint}
