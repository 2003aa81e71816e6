"""What clients may send: the OpenAI API's requests as far as the engine serves them, and ours beside them."""

from __future__ import annotations

import base64
import difflib
from array import array
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.sequence import REPETITION_PENALTIES, ListedTokens, SamplingParams

MAX_SEED = 2**63 - 1

IGNORED = frozenset({
    "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
})  # fmt: skip
"""OpenAI's fields that cannot change a result here."""

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "echo": (False,), "function_call": ("none",), "functions": ([],),
    "modalities": (["text"],), "prediction": (), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],), "verbosity": (), "web_search_options": (),
}  # fmt: skip
"""Known fields that the engine cannot honour, and the values that ask for nothing."""


class ApiError(Exception):
    """An answer in OpenAI's error shape. status: HTTP. param: the field at fault.

    kind: OpenAI's error type, where the status does not tell it. retry_after: seconds, for the header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


def _one_prompt(value: Any) -> str | list[int]:
    """Text or token ids; OpenAI's list of prompts is taken when it holds one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) or (isinstance(value, list) and all(type(item) is int for item in value)):
        return value
    raise ValueError("expected one text or one list of token ids")


Prompt = Annotated[str | list[int], BeforeValidator(_one_prompt)]


def _token_ids_as_keys(value: Any) -> Any:
    """JSON has text keys only."""
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isdecimal() for key in value):
        raise ValueError("expected an object of token id to bias")
    return {int(key): bias for key, bias in value.items()}


Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(_Body):
    """include_usage: a last chunk with token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingRequest(_Body):
    """Fields that completions and chat share. top_k 0 or -1: off. return_token_ids: one chunk a step, with its ids.

    priority: lower runs earlier when scheduling_policy is priority, and nothing otherwise. seed -1: none, as in vLLM.
    """

    model: str | None = None
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**63 - 1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=REPETITION_PENALTIES[0], le=REPETITION_PENALTIES[1])
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_token_ids_as_keys)] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    user: str | None = None
    stop: list[str] = Field(default_factory=list, max_length=16)
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        stop = [value] if isinstance(value, str) else value
        if isinstance(stop, list) and "" in stop:
            raise ValueError("an empty stop string would end every answer at once")
        return stop

    @model_validator(mode="after")
    def _consistent(self) -> SamplingRequest:
        if not self.stream and "stream_options" in self.model_fields_set:
            raise ValueError("stream_options: needs stream true")
        return self

    def sampling(
        self, max_tokens: int, stop_token_ids: tuple[int, ...], num_top_logprobs: int | None
    ) -> SamplingParams:
        """num_top_logprobs: alternatives to list beside each token; None: no log-probabilities at all."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            seed=None if self.seed in (None, -1) else self.seed % (MAX_SEED + 1),
            ignore_eos=self.ignore_eos,
            stop_token_ids=() if self.ignore_eos else stop_token_ids,
            logprobs=num_top_logprobs is not None,
            top_logprobs=num_top_logprobs or 0,
        )


class CompletionRequest(SamplingRequest):
    """POST /v1/completions. max_tokens: 16 when absent, as OpenAI has it. logprobs: alternatives listed."""

    prompt: Prompt
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)


class Message(_Body):
    """One chat message. content: text, or text parts, which are joined."""

    role: str
    content: str
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Whoever sends an answer back as it came sends "refusal": null and more of the kind with it."""
        return {k: v for k, v in value.items() if v not in (None, [])} if isinstance(value, dict) else value

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(value) or not all(isinstance(text, str) for text in texts):
            raise ValueError("expected text, or a list of parts of type text")
        return "".join(map(str, texts))


class ChatCompletionRequest(SamplingRequest):
    """POST /v1/chat/completions. Without a limit the answer may fill the context."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs true")
        return self


class ScoreItem(_Body):
    """target: what is fed after the prompt, and whose log-probabilities are wanted. listed_ids: other tokens whose
    log-probabilities are wanted too, as base64 of int32 (little-endian), the same number of them at each target token.
    """

    prompt: Prompt
    target: Prompt
    listed_ids: str | None = None

    def listed(self, top: int, length: int, vocab_size: int) -> ListedTokens | None:
        """What to list at each of `length` target tokens. Raises ApiError 400 for what is no list of token ids."""
        if self.listed_ids is None:
            return ListedTokens(min(top, vocab_size)) if top else None
        try:
            data = base64.b64decode(self.listed_ids, validate=True)
        except ValueError:
            data = b""
        ids = array("i", data[: len(data) // 4 * 4])
        if not data or len(data) % (4 * length) or not 0 <= min(ids) <= max(ids) < vocab_size:
            message = f"listed_ids: expected base64 of int32 token ids, as many for each of {length} target tokens"
            raise ApiError(400, message, param="listed_ids")
        return ListedTokens(len(ids) // length, data)


class ScoreRequest(_Body):
    """POST /score. list_top: how many of the likeliest tokens to list at each target token whose item names none."""

    items: list[ScoreItem] = Field(min_length=1)
    list_top: int = Field(0, ge=0, le=1024)


class TokenizeRequest(_Body):
    """POST /tokenize, in vLLM's shape: prompt or messages. model is not looked at: one is served."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: expected either prompt or messages")
        return self


class DetokenizeRequest(_Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class ReconfigureRequest(_Body):
    """POST /reconfigure. changes: fields of EngineConfig."""

    changes: dict[str, Any]


RequestT = TypeVar("RequestT", bound=_Body)


def parse_request(model: type[RequestT], body: bytes) -> RequestT:
    """Validate a request body. Raises ApiError 400 naming the field."""
    try:
        values = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return model.model_validate(_known_fields(model, values))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{field}: {message}" if field else message, param=field or None) from None


def _known_fields(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields the model has. OpenAI's clients send null for "not given"."""
    known = {}
    for name, value in values.items():
        if value is None and (name in model.model_fields or name in UNSUPPORTED):
            continue
        if name in model.model_fields:
            known[name] = value
        elif not issubclass(model, SamplingRequest) or name not in IGNORED:
            _refuse(model, name, value)
    return known


def _refuse(model: type[BaseModel], name: str, value: Any) -> None:
    if name in UNSUPPORTED and issubclass(model, SamplingRequest):
        if value in UNSUPPORTED[name]:
            return
        raise ApiError(400, f"{name}: not supported by this engine", param=name, code="unsupported_parameter")
    near = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ApiError(400, f"{name}: unknown field{hint}", param=name, code="unknown_parameter")
