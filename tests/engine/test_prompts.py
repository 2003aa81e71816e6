"""Prompts over HTTP: cut to length as configured, tokenised and detokenised."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from fake_engine import MAX_MODEL_LEN, byte_level_tokenizer, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from serving import Engine, running
from test_processes import post

from engine.prompts import truncated


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running({"model": str(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))}, fake=True) as process:
        yield process


@pytest.fixture
async def http(engine: Engine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


IDS = list(range(10, 200)) * 2  # 380 ids; id 0 is the begin token
LIMIT = MAX_MODEL_LEN - 56
CUTS: list[tuple[str, str, list[int], list[int]]] = [
    ("the tail stays", "keep_tail", IDS, IDS[-LIMIT:]),
    ("the begin token stays before the tail", "keep_tail", [0, *IDS], [0, *IDS[-LIMIT + 1 :]]),
    ("half from each end", "keep_head_and_tail", IDS, IDS[:100] + IDS[-100:]),
    ("what fits is left alone", "keep_tail", IDS[:LIMIT], IDS[:LIMIT]),
]


@pytest.mark.parametrize(("how", "prompt", "kept"), [cut[1:] for cut in CUTS], ids=[cut[0] for cut in CUTS])
async def test_a_long_prompt_is_cut(http: aiohttp.ClientSession, how: str, prompt: list[int], kept: list[int]) -> None:
    assert (await post(http, "/reconfigure", {"changes": {"prompt_truncation": how}}))[1]["cost"] in ("hot", None)
    before = await counter(http, "prompts_truncated_total"), await counter(http, "prompt_tokens_truncated_total")
    body = {"prompt": prompt, "max_tokens": 56, "return_token_ids": True, "ignore_eos": True}
    _, answer = await post(http, "/v1/completions", body)
    assert answer["choices"][0]["prompt_token_ids"] == kept
    assert answer["usage"] == {"prompt_tokens": len(kept), "completion_tokens": 56, "total_tokens": len(kept) + 56}
    after = await counter(http, "prompts_truncated_total"), await counter(http, "prompt_tokens_truncated_total")
    assert (after[0] - before[0], after[1] - before[1]) == (len(kept) < len(prompt), len(prompt) - len(kept))


@pytest.mark.parametrize(("how", "max_tokens"), [("refuse", 56), ("keep_tail", MAX_MODEL_LEN)])
async def test_what_cannot_be_cut_is_refused(http: aiohttp.ClientSession, how: str, max_tokens: int) -> None:
    await post(http, "/reconfigure", {"changes": {"prompt_truncation": how}})
    status, answer = await post(http, "/v1/completions", {"prompt": IDS, "max_tokens": max_tokens})
    assert status == 400
    assert answer["error"] == {
        "message": f"max_tokens: 380 prompt tokens and {max_tokens} more exceed max_model_len = 256 tokens",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "context_length_exceeded",
    }


async def test_a_chat_without_a_limit_keeps_a_quarter_for_the_answer(http: aiohttp.ClientSession) -> None:
    await post(http, "/reconfigure", {"changes": {"prompt_truncation": "keep_head_and_tail"}})
    body = {"messages": [{"role": "user", "content": "the quick brown fox " * 100}], "ignore_eos": True}
    _, answer = await post(http, "/v1/chat/completions", body)
    assert answer["usage"] == {"prompt_tokens": 192, "completion_tokens": 64, "total_tokens": 256}


@given(
    length=st.integers(2, 60),
    limit=st.integers(1, 59),
    how=st.sampled_from(["keep_tail", "keep_head_and_tail"]),
    special=st.booleans(),
)
def test_truncation_keeps_the_order_and_both_ends_it_promises(length: int, limit: int, how: str, special: bool) -> None:
    prompt = list(range(length))
    limit = min(limit, length - 1)
    kept = truncated(prompt, limit, how, special)
    assert len(kept) == limit
    assert kept == sorted(kept)
    assert kept[-1] == prompt[-1]
    if limit > 1 and (special or how == "keep_head_and_tail"):
        assert kept[0] == 0


async def test_tokenize_has_vllms_shape(http: aiohttp.ClientSession) -> None:
    tokenizer = byte_level_tokenizer()
    status, answer = await post(http, "/tokenize", {"prompt": "the quick fox", "return_token_strs": True})
    ids = tokenizer.encode("the quick fox").ids
    assert (status, answer.pop("token_strs")[1:]) == (200, [tokenizer.decode([id]) for id in ids[1:]])
    assert answer == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids}
    bare = (await post(http, "/tokenize", {"prompt": "the quick fox", "add_special_tokens": False}))[1]
    assert (bare["tokens"], bare["token_strs"]) == (ids[1:], None)
    back = await post(http, "/detokenize", {"tokens": bare["tokens"]})
    assert back == (200, {"prompt": "the quick fox"})


async def test_tokenize_counts_what_a_chat_will_be_charged(http: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "the quick fox"}]
    _, counted = await post(http, "/tokenize", {"messages": messages})
    _, answer = await post(http, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    _, bare = await post(http, "/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert bare["tokens"] == counted["tokens"][: bare["count"]]
    assert bare["count"] < counted["count"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "expected either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "either prompt or messages"),
        ("/tokenize", {"prompt": 5}, "prompt: Input should be a valid string"),
        ("/detokenize", {"tokens": [300]}, "token ids must lie in"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0: Input should be a valid integer"),
    ],
)
async def test_bad_tokenize_requests(http: aiohttp.ClientSession, path: str, body: Any, message: str) -> None:
    status, answer = await post(http, path, body)
    assert (status, message in answer["error"]["message"]) == (400, True)


async def counter(http: aiohttp.ClientSession, name: str) -> float:
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"servetune:{name} ")))
