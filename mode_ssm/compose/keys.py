"""What the schema knows of a key: its type, its meaning, and which key was probably meant by a mistyped one.

A key is a dotted path, `model.encoder.n_layers`. Where the schema has a dictionary of sections (the phases of a
curriculum) the name in between is free and stands as `*`: `curriculum.phases.*.epochs`.
"""

import inspect
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mode_ssm import config

ANY_NAME = "*"
_CLOSE_ENOUGH = 0.6  # similarity from which a guess is worth printing
_CLOSE_NAMES = 0.5  # and that of the last names alone


class ConfigError(ValueError):
    """A mistake in what the user wrote; the message is one line and complete."""


@dataclass(frozen=True, slots=True)
class Key:
    path: str
    type: Any
    comment: str  # what stands behind the field in the schema

    @property
    def is_section(self) -> bool:
        return is_section(self.type)


def is_section(kind: Any) -> bool:
    return is_dataclass(kind) or get_origin(kind) is dict


@cache
def _comments() -> dict[tuple[str, str], str]:
    """{(class, field): comment} of the schema's source."""
    comments = {}
    for name, kind in vars(config).items():
        if not (inspect.isclass(kind) and is_dataclass(kind)):
            continue
        lines, _ = inspect.getsourcelines(kind)
        by_line = {
            token.start[0] - 1: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(iter(lines).__next__)
            if token.type == tokenize.COMMENT
        }
        starts = [
            (f.name, i) for f in fields(kind) for i, line in enumerate(lines) if line.startswith(f"    {f.name}:")
        ]
        ends = [start for _, start in starts[1:]] + [len(lines)]
        for (field_name, start), end in zip(starts, ends, strict=True):
            found = [by_line[i] for i in range(start, end) if i in by_line]
            comments[name, field_name] = " ".join(found)
    return comments


def _walk(kind: Any, prefix: str) -> Iterable[Key]:
    if get_origin(kind) is dict:
        path = f"{prefix}{ANY_NAME}"
        yield Key(path, get_args(kind)[1], "")
        yield from _walk(get_args(kind)[1], f"{path}.")
    elif is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            path = f"{prefix}{field.name}"
            owner = kind.__name__ if isinstance(kind, type) else type(kind).__name__
            yield Key(path, hints[field.name], _comments().get((owner, field.name), ""))
            yield from _walk(hints[field.name], f"{path}.")


def schema_keys(schema: Any) -> Mapping[str, Key]:
    """Every key of a root dataclass, sections included, in the order of the schema."""
    return {key.path: key for key in _walk(schema, "")}


def find_key(path: str, keys: Mapping[str, Key]) -> Key | None:
    """The schema's entry for a concrete path, in which free names are spelled out."""
    if path in keys:
        return keys[path]
    for known, key in keys.items():
        if ANY_NAME in known and _spell_out(known, path) == path:
            return key
    return None


def _spell_out(known: str, path: str) -> str:
    """`known` with its free names taken from `path`, so that the two can be compared and shown."""
    names = path.split(".")
    parts = known.split(".")
    return ".".join(
        names[i] if part == ANY_NAME and i < len(names) else "<name>" if part == ANY_NAME else part
        for i, part in enumerate(parts)
    )


def similarity(a: str, b: str) -> float:
    """From 0 to 1; of two paths the mean over section and last name, 0 if the last names have little in common."""
    section_a, _, name_a = a.rpartition(".")
    section_b, _, name_b = b.rpartition(".")
    names = SequenceMatcher(None, name_a, name_b).ratio()
    return (names + SequenceMatcher(None, section_a, section_b).ratio()) / 2 if names >= _CLOSE_NAMES else 0.0


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, or None where none is similar."""
    best = max(words, key=lambda other: similarity(word, other), default=None)
    return best if best is not None and similarity(word, best) >= _CLOSE_ENOUGH else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    guess = nearest(word, words)
    return f"; did you mean {guess!r}?" if guess else ""


def unknown_key(path: str, keys: Mapping[str, Key], groups: Iterable[str] = ()) -> str:
    """One line for a key that does not exist, with the nearest that does, else with those of its section."""
    section, _, leaf = path.rpartition(".")
    what = "key" if section else "key or group"
    parent = find_key(section, keys)
    if parent is not None and not parent.is_section:
        return f"unknown {what} {path!r}; did you mean {section!r}?"
    named = [key.path for key in keys.values() if not key.path.endswith(ANY_NAME)]
    known = [_spell_out(other, path) for other in named] + list(groups)
    same_leaf = [other for other in named if other.rpartition(".")[2] == leaf]
    if same_leaf:
        guesses = sorted((_spell_out(other, path) for other in same_leaf), key=lambda other: -similarity(path, other))
        return f"unknown {what} {path!r}; did you mean {' or '.join(map(repr, guesses[:3]))}?"
    if guess := did_you_mean(path, known):
        return f"unknown {what} {path!r}{guess}"
    while section and find_key(section, keys) is None:
        section = section.rpartition(".")[0]
    start = f"{section}." if section else ""
    inside = sorted({other[len(start) :].split(".")[0] for other in known if other.startswith(start)})
    return f"unknown {what} {path!r}; {section or 'the root'} has {', '.join(inside)}"


def expected(kind: Any) -> str:
    """The values that a field takes, in words."""
    if get_origin(kind) in (Union, UnionType):
        inner = [member for member in get_args(kind) if member is not NoneType]
        return f"{expected(inner[0])} or null"
    if get_origin(kind) is list:
        return f"a list of {'texts' if get_args(kind)[0] is str else 'values'}, [a,b]"
    if is_section(kind):
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else ["one per name"]
        return f"a section ({', '.join(names)})"
    if issubclass(kind, Enum):
        return f"one of {', '.join(member.name for member in kind)}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def wrong_value(path: str, value: str, keys: Mapping[str, Key]) -> str:
    """One line for a value that the type of its key refuses."""
    key = find_key(path, keys)
    if key is None:
        return f"{path}={value}: not a value for this key"
    choices = [member.name for member in key.type] if inspect.isclass(key.type) and issubclass(key.type, Enum) else []
    return f"{path}={value}: expected {expected(key.type)}{did_you_mean(value, choices)}"
