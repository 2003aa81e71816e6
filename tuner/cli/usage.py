"""What is wrong with a command line, in one line: what was given, what was expected, the nearest valid choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

# typer's own copy of click: no public name
from typer._click.exceptions import BadParameter, MissingParameter, NoSuchOption, UsageError

_NO_CHOICE = re.compile(r"(?:Value error, )?'(?P<given>.*)' is not one of (?P<choices>.*)\.", re.DOTALL)
_CHOICE = re.compile(r"'([^']*)'")


def usage_problem(error: UsageError, group: Any = None) -> str:
    """group: the context of the one that the command belongs to, for errors that do not know theirs."""
    words = _path(group, group.invoked_subcommand) if error.ctx is None else _path(error.ctx)
    return f"{': '.join(part for part in (' '.join(words), _told(error)) if part)} ({_tune(*words, '--help')})"


def no_such_command(group: Any, name: str) -> str:
    """group: of typer; a command of one of its groups may have been meant, too."""
    inner = {word: f"{outer} {word}" for outer, one in group.commands.items() for word in getattr(one, "commands", ())}
    known = inner | {word: word for word in group.commands}
    near = [known[word] for word in difflib.get_close_matches(name, known, n=1)]
    return f"no such command {name}; " + _expected(near, group.commands)


def _path(context: Any, *behind: str) -> tuple[str, ...]:
    """The words behind `tune`."""
    return behind if context.parent is None else _path(context.parent, context.info_name, *behind)


def _tune(*words: str) -> str:
    return " ".join(("tune", *words))


def _told(error: UsageError) -> str:
    match error:
        case NoSuchOption(possibilities=near, option_name=name):
            return f"no such option {name}; {_expected(near or (), _options(error.ctx))}"
        case MissingParameter(param=param) if param is not None:
            _, _, choices = error.format_message().partition("Choose from:")
            return f"missing {_name(param)}: {getattr(param, 'help', None) or ''} {choices and f'One of {choices}'}"
        case BadParameter(param=param) if param is not None:
            return f"{_name(param)}: {_refusal(error)}"
    message = error.format_message()
    if error.ctx is not None and "extra argument" in message:
        usage = error.ctx.command.collect_usage_pieces(error.ctx)
        message = f"{message}, expected {_tune(*_path(error.ctx), *usage)}"
    return message[:1].lower() + message[1:].removesuffix(".")


def _refusal(error: UsageError) -> str:
    """Of a value: what was expected of it, the nearest choice where there are choices, what was given."""
    if (choice := _NO_CHOICE.fullmatch(error.message)) is not None:
        choices = _CHOICE.findall(choice["choices"])
        near = difflib.get_close_matches(choice["given"], choices, n=1)
        return f"no such choice {choice['given']}; {_expected(near, choices)}"
    # pydantic's, which do not say in words what was given
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    return error.message + (f" (given: {found[0]['input']})" if found else "")


def _expected(near: Iterable[str], all_of_them: Iterable[str]) -> str:
    nearest = next(iter(near), None)
    return f"did you mean {nearest}?" if nearest else f"expected one of {', '.join(all_of_them)}"


def _options(context: Any) -> list[str]:
    parameters = [] if context is None else context.command.get_params(context)
    return [option for one in parameters for option in one.opts if option.startswith("--")]


def _name(parameter: Any) -> str:
    """--trials of an option, STUDY of an argument."""
    return str(max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper())
