"""Text to token ids and back: the checkpoint's tokenizer, its chat template, and incremental detokenising."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT_TOKENS = 5
"""Prompt tokens decoded before the output, so that a leading space is kept where the decoder drops the first one."""
FIRST_CUT_TOKENS = 16

REPLACEMENT = "\ufffd"


class Tokenizer:
    """The tokenizer of one checkpoint directory. Raises ValueError (one line) for a missing or broken file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the checkpoint needs a tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from None
        except Exception as error:
            # the library raises bare Exception for a file that it does not understand
            if type(error) is not Exception:
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: not a tokenizer: {reason}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._settings = _read_json(directory / "tokenizer_config.json")
        model = _read_json(directory / "config.json")
        generation = _read_json(directory / "generation_config.json")
        eos = generation.get("eos_token_id", model.get("eos_token_id"))
        self.eos_token_ids: tuple[int, ...] = _as_ids(eos) or self._eos_by_name()
        self.vocab_size: int = int(model.get("vocab_size") or self._tokenizer.get_vocab_size())
        """Ids below this can be embedded; a larger id must never reach the engine."""
        added = self._tokenizer.get_added_tokens_decoder()
        self.is_byte_level = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        """Byte-level decoding: bytes decode left to right, so what precedes an incomplete character never changes."""
        self._special_ids = frozenset(id for id, token in added.items() if token.special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written in it are recognised. add_special_tokens: BOS and such too."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """One token on its own, as log-probability listings name it; an incomplete character is U+FFFD."""
        return self.decode((token,), skip_special_tokens=False)

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of the prompt that asks for the assistant's next message. Raises ValueError."""
        try:
            text = self._chat_template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=_token_text(self._settings.get("bos_token")),
                eos_token=_token_text(self._settings.get("eos_token")),
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"messages: the chat template refuses them: {error}") from None
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def _chat_template(self) -> jinja2.Template:
        source = self._template_source()
        if source is None:
            raise ValueError("messages: this checkpoint has no chat template; use /v1/completions")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"messages: the checkpoint's chat template cannot be parsed: {error}") from None

    def _template_source(self) -> str | None:
        file = self._directory / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = self._settings.get("chat_template")
        if isinstance(template, list):
            by_name = {entry["name"]: entry["template"] for entry in template}
            template = by_name.get("default")
        return template

    def _eos_by_name(self) -> tuple[int, ...]:
        name = _token_text(self._settings.get("eos_token"))
        return _as_ids(self._tokenizer.token_to_id(name) if name else None)


class Detokenizer:
    """Output tokens of one request to text, piece by piece.

    Only complete characters are given out. Text that might begin a stop string is withheld until it is decided;
    once a stop string appears, `stopped` is true, the text before it has been given out and the rest is dropped.
    length: characters so far, withheld ones included: where the next token's text begins.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._withheld = ""
        self.stopped = False
        self.length = 0
        # _window: recent ids. Its first _read ids are context: their text has been given out, and decoding them
        # again before the new ones makes the decoder treat the new ones as a continuation.
        self._window = [id for id in prompt if not tokenizer.is_special(id)][-CONTEXT_TOKENS:]
        if tokenizer.decode(self._window).endswith(REPLACEMENT):
            self._window = []
        self._read = len(self._window)
        self._given = len(tokenizer.decode(self._window))  # characters of the window's text given out
        self._cut_at = FIRST_CUT_TOKENS

    def add(self, token: int) -> str:
        """The text that `token` completes; often the empty string is right. Nothing after a stop string."""
        if self.stopped or self._tokenizer.is_special(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        new = text[self._given : self._settled(text)]
        self._given += len(new)
        self.length += len(new)
        if new and self._given == len(text):
            self._slide()
        elif len(self._window) - self._read >= self._cut_at:
            self._shorten(text)
        return self._release(new) if self._stop else new

    def _settled(self, text: str) -> int:
        """Characters of `text` that later tokens cannot change."""
        if not text.endswith(REPLACEMENT):
            return len(text)
        if self._tokenizer.is_byte_level:
            return len(text) - 1
        # Byte-fallback decoders turn a whole run of bytes into marks until its last character is complete.
        return len(text) if len(self._window) - self._read >= FIRST_CUT_TOKENS else self._given

    def finish(self) -> str:
        """What was withheld: the request is over, so no stop string and no character will be completed."""
        if self.stopped:
            return ""
        rest = self._withheld + self._tokenizer.decode(self._window)[self._given :]
        self._withheld = ""
        self._given += len(rest)
        return rest

    def _slide(self) -> None:
        """All text is given out: the ids that made it become the context of the next."""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._given = len(self._tokenizer.decode(self._window))
        self._cut_at = FIRST_CUT_TOKENS

    def _shorten(self, text: str) -> None:
        """A long run of bytes that are no text would make each step dearer: cut it where both halves decode alone."""
        for cut in range(len(self._window) - 1, self._read, -1):
            head, tail = self._tokenizer.decode(self._window[:cut]), self._tokenizer.decode(self._window[cut:])
            if head + tail == text and self._given >= len(head):
                self._window, self._read, self._given = self._window[cut:], 0, self._given - len(head)
                self._cut_at = FIRST_CUT_TOKENS
                return
        self._cut_at *= 2

    def _release(self, new: str) -> str:
        text = self._withheld + new
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._withheld = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def _as_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _token_text(value: Any) -> str:
    """A special token in tokenizer_config.json: text, an object with `content`, or absent."""
    if isinstance(value, dict):
        value = value.get("content")
    return value or ""


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
