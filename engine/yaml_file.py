"""A YAML file of settings, read strictly: one document, no key twice, a mistake told by its line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml

SHOWN_CHARACTERS = 60
TIMESTAMP = "tag:yaml.org,2002:timestamp"
WORDS = {type(None): "nothing", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


class _Loader(yaml.SafeLoader):
    """SafeLoader, but a key that is there twice is refused, where YAML's readers keep the last one without a word, and
    a date is text: no setting is a date."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    # Composed, not constructed: keys that `<<` merges in may be overridden.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (first := lines.get((key.tag, key.value))) is not None:
                problem = f"{key.value}: expected once, but line {first} has this key too"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, KeyError, ValueError):  # an explicit tag, as in `!!bool perhaps`; a number too long
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(None, None, f"expected {kind}", node.start_mark) from None


def read_yaml(path: Path) -> Any:
    """What the file holds. Raises ValueError with one line: the file, line and column, what was expected there."""
    try:
        text = path.read_text(encoding="utf-8")
        return _Loader(text).get_single_data()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        character = f"U+{ord(text[error.position]):04X}"
        raise ValueError(f"{path}: line {line}, column {column}: not YAML: the character {character}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{path}: {_problem(error, text)}") from None


def read_mapping(path: Path, what: str = "a mapping") -> dict[str, Any]:
    """The mapping in a file, `what` it should be. Raises ValueError with one line."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected {what}, found {found(values)}")
    return values


def found(value: Any) -> str:
    """In words, what stands where something else was expected."""
    return WORDS.get(type(value), type(value).__name__)


def refuse_truth(value: Any, annotation: Any) -> None:
    """Raises ValueError for true or false where a field takes neither: YAML reads `on`, `yes` and `off` so, and
    pydantic would make a number of it."""
    if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
        raise ValueError(f"expected no {str(value).lower()}; YAML reads yes, no, on and off as true and false")


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    """Where, what was expected or found, and the line that it is about."""
    began, mark = error.context_mark, error.problem_mark or error.context_mark
    assert mark is not None  # of the errors that reading text raises, ReaderError alone has none
    if began is not None and error.context == "while scanning a simple key":
        mark = began  # a key is missed only where the next line begins
    words = "" if error.context is None else error.context
    if began is not None and began.line != mark.line:
        words += f" that begins in line {began.line + 1}"
    words += (words and ", ") + (error.problem or "")
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.composer.ComposerError) and error.context is None:
        return f"{where}: {words}"
    line = "".join(text.splitlines()[mark.line : mark.line + 1]).strip()
    shown = line[:SHOWN_CHARACTERS] + ("…" if len(line) > SHOWN_CHARACTERS else "")
    return f"{where}: not YAML: {words}" + (f" (the line: {shown})" if shown else "")
