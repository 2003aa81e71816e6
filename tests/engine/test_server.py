"""The HTTP API with the model behind it, through OpenAI's own Python client."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from serving import Engine, running

from engine.tokenizer import Tokenizer

PROMPT = "the server answers the client"
SECRET = "zebra-4711"


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    settings = {"model": str(tiny_llama), "kv_cache_memory_bytes": 4_000_000, "max_num_batched_tokens": 64}
    with running(settings) as process:
        yield process


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[AsyncOpenAI]:
    async with engine.client() as client:
        yield client


@pytest.fixture
async def http(engine: Engine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


async def complete(client: AsyncOpenAI, prompt: Any = PROMPT, **options: Any) -> Any:
    extra = {"ignore_eos": True, "return_token_ids": True, **options.pop("extra_body", {})}
    options = {"max_tokens": 24, "temperature": 0, **options}
    return await client.completions.create(model="", prompt=prompt, extra_body={"model": None, **extra}, **options)


async def streamed(chunks: Any) -> tuple[str, list[int], list[Any]]:
    """Text, token ids and all chunks of a completions stream."""
    received = [chunk async for chunk in chunks]
    choices = [choice for chunk in received for choice in chunk.choices]
    return "".join(choice.text for choice in choices), [id for choice in choices for id in choice.token_ids], received


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def test_models_lists_the_checkpoint(client: AsyncOpenAI, tiny_llama: Path) -> None:
    (model,) = (await client.models.list()).data
    assert model.id == tiny_llama.name
    assert model.model_extra == {"max_model_len": 512}
    answer = await client.completions.create(model=model.id, prompt=PROMPT, max_tokens=1)
    assert answer.model == model.id


async def test_a_completion_counts_its_tokens(client: AsyncOpenAI, tiny_llama: Path) -> None:
    tokenizer = Tokenizer(tiny_llama)
    answer = await complete(client)
    (choice,) = answer.choices
    assert (choice.finish_reason, answer.usage.completion_tokens) == ("length", 24)
    assert choice.prompt_token_ids == tokenizer.encode(PROMPT)
    assert answer.usage.prompt_tokens == len(choice.prompt_token_ids)
    assert choice.text == tokenizer.decode(choice.token_ids)
    by_ids = await complete(client, choice.prompt_token_ids)
    assert by_ids.choices[0].text == choice.text


async def test_a_stream_gives_one_chunk_a_token_and_the_same_text(client: AsyncOpenAI) -> None:
    whole = (await complete(client)).choices[0]
    stream = await complete(client, stream=True, stream_options={"include_usage": True})
    text, ids, chunks = await streamed(stream)
    assert (text, ids) == (whole.text, whole.token_ids)
    assert [len(chunk.choices[0].token_ids) for chunk in chunks[:-1]] == [1] * 24
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 24)


async def test_without_token_ids_every_chunk_has_text(client: AsyncOpenAI) -> None:
    whole = (await complete(client)).choices[0]
    stream = await complete(client, stream=True, extra_body={"return_token_ids": False})
    chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert all(chunk.text for chunk in chunks[:-1])
    assert [chunk.finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "length"]


async def test_many_streams_at_once_are_each_as_alone(client: AsyncOpenAI) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(12)]
    alone = [(await complete(client, prompt)).choices[0].token_ids for prompt in prompts]

    async def one(prompt: str) -> list[int]:
        return (await streamed(await complete(client, prompt, stream=True)))[1]

    assert await asyncio.gather(*map(one, prompts)) == alone


async def test_chat_streams_what_it_answers_whole(client: AsyncOpenAI, tiny_llama: Path) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "server"}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    options: dict[str, Any] = {"max_completion_tokens": 12, "temperature": 0, "extra_body": {"return_token_ids": True}}
    whole = await client.chat.completions.create(model=tiny_llama.name, messages=messages, **options)
    stream = await client.chat.completions.create(
        model=tiny_llama.name, messages=messages, stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = [chunk async for chunk in stream]
    assert whole.prompt_token_ids == Tokenizer(tiny_llama).encode("<|bos|><|user|>the server<|eos|><|assistant|>")
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens == len(whole.prompt_token_ids)


async def test_an_answer_may_be_sent_back_as_it_came(client: AsyncOpenAI, tiny_llama: Path) -> None:
    asked: list[Any] = [{"role": "user", "content": "the server"}]
    answer = (await client.chat.completions.create(model=tiny_llama.name, messages=asked, max_tokens=3)).choices[0]
    plain, dumped = {"role": "assistant", "content": answer.message.content}, answer.message.model_dump()
    assert dumped.keys() > plain.keys(), "the client adds what it did not get, as null"
    told = [
        await client.chat.completions.create(
            model=tiny_llama.name, messages=[*asked, back, *asked], max_tokens=3, temperature=0
        )
        for back in (plain, {**dumped, "annotations": []})
    ]
    assert told[0].choices[0].message.content == told[1].choices[0].message.content
    assert told[0].usage == told[1].usage


async def test_chat_without_a_limit_may_fill_the_context(client: AsyncOpenAI, tiny_llama: Path) -> None:
    answer = await client.chat.completions.create(
        model=tiny_llama.name, messages=[{"role": "user", "content": "x" * 490}], extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert (answer.usage.total_tokens, answer.choices[0].finish_reason) == (512, "length")


async def test_text_before_a_stop_string_is_delivered_and_the_rest_is_not(client: AsyncOpenAI) -> None:
    text = (await complete(client, max_tokens=96)).choices[0].text
    stop = next(text[n : n + 3] for n in range(4, len(text)) if "\ufffd" not in text[n : n + 3])
    answer = await complete(client, max_tokens=96, stop=[stop, "never there"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    assert answer.usage.completion_tokens < 96
    stream = await complete(client, max_tokens=96, stop=stop, stream=True)
    assert (await streamed(stream))[0] == text[: text.index(stop)]


async def test_a_seed_reproduces_a_sample(client: AsyncOpenAI) -> None:
    first, again, other, below, again_below = [
        (await complete(client, temperature=1.0, seed=seed)).choices[0].token_ids for seed in (7, 7, 8, -7, -7)
    ]
    assert first == again and below == again_below
    assert first != other and first != below


async def test_score_gives_the_logprobs_of_decoding(client: AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(3)]
    answers = [(await complete(client, prompt, logprobs=0)).choices[0] for prompt in prompts]
    items = [{"prompt": p, "target": answer.token_ids} for p, answer in zip(prompts, answers, strict=True)]
    status, scores = await post(http, "/score", {"items": items})
    assert status == 200
    for score, answer in zip(scores["items"], answers, strict=True):
        assert score["tokens"] == score["top_tokens"] == answer.token_ids
        assert score["logprobs"] == pytest.approx(answer.logprobs.token_logprobs, abs=1e-4)


async def test_score_takes_text_and_shows_what_greedy_decoding_had_chosen(
    http: aiohttp.ClientSession, tiny_llama: Path
) -> None:
    status, scores = await post(http, "/score", {"items": [{"prompt": PROMPT, "target": " asks again"}]})
    (score,) = scores["items"]
    assert score["tokens"] == Tokenizer(tiny_llama).encode(" asks again", add_special_tokens=False)
    assert score["top_tokens"] != score["tokens"]
    assert all(logprob < 0 for logprob in score["logprobs"])


async def test_score_lists_the_likeliest_and_takes_them_back(http: aiohttp.ClientSession) -> None:
    item = {"prompt": PROMPT, "target": " asks again"}
    _, first = await post(http, "/score", {"items": [item], "list_top": 4})
    (top,) = first["items"]
    _, second = await post(http, "/score", {"items": [item | {"listed_ids": top["listed_ids"]}]})
    assert second["items"][0]["listed_logprobs"] == top["listed_logprobs"]
    assert len(base64.b64decode(top["listed_logprobs"])) == len(top["tokens"]) * 5 * 4


async def test_chat_logprobs_are_listed_per_token(client: AsyncOpenAI, tiny_llama: Path) -> None:
    answer = await client.chat.completions.create(
        model=tiny_llama.name, messages=[{"role": "user", "content": "hi"}], max_tokens=5, logprobs=True, temperature=0
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None and len(content) == answer.usage.completion_tokens  # type: ignore[union-attr]
    assert all(entry.logprob <= 0 for entry in content)


async def test_alternatives_come_in_openai_s_shapes(client: AsyncOpenAI, tiny_llama: Path) -> None:
    answer = await client.chat.completions.create(
        model=tiny_llama.name,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
        temperature=0,
    )
    assert answer.choices[0].logprobs is not None
    for entry in answer.choices[0].logprobs.content or []:
        assert len(entry.top_logprobs) == 3
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert [top.logprob for top in entry.top_logprobs] == sorted(top.logprob for top in entry.top_logprobs)[::-1]
    listed = (await complete(client, logprobs=2, temperature=1.0, seed=4)).choices[0].logprobs
    assert all(0 < len(top) <= 3 for top in listed.top_logprobs)
    assert all(token in top for token, top in zip(listed.tokens, listed.top_logprobs, strict=True))
    assert (await complete(client, logprobs=0)).choices[0].logprobs.top_logprobs is None


async def test_text_offsets_are_where_the_tokens_begin(client: AsyncOpenAI) -> None:
    (whole,) = (await complete(client, logprobs=0, max_tokens=40)).choices
    offsets = whole.logprobs.text_offset
    assert len(offsets) == 40
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    text = [
        (token, offset) for token, offset in zip(whole.logprobs.tokens, offsets, strict=True) if "\ufffd" not in token
    ]
    assert len(text) > 5
    assert all(whole.text[offset:].startswith(token) for token, offset in text)
    _, _, chunks = await streamed(await complete(client, logprobs=0, max_tokens=40, stream=True))
    assert [offset for chunk in chunks for c in chunk.choices for offset in c.logprobs.text_offset] == offsets


async def test_penalties_and_bias_reach_the_model(client: AsyncOpenAI) -> None:
    plain = (await complete(client, logprobs=0)).choices[0]
    first = plain.token_ids[0]
    banned = (await complete(client, logit_bias={str(first): -100})).choices[0].token_ids
    assert first not in banned
    forced = (await complete(client, logit_bias={"77": 100}, max_tokens=5)).choices[0].token_ids
    assert forced == [77] * 5
    unlike = await complete(client, logit_bias={"77": 20}, frequency_penalty=2.0, presence_penalty=2.0, max_tokens=24)
    assert 0 < unlike.choices[0].token_ids.count(77) < 24
    seldom = await complete(client, logit_bias={"77": 20}, extra_body={"repetition_penalty": 10.0, "min_p": 0.1})
    assert seldom.choices[0].token_ids[:2] != [77, 77]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 512}, r"max_tokens: \d+ prompt tokens and 512 more exceed max_model_len = 512"),
        ({"extra_body": {"max_token": 5}}, "max_token: unknown field; did you mean max_tokens"),
        ({"extra_body": {"tools": [{}]}}, "tools: not supported"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format: not supported"),
        ({"extra_body": {"min_p": 1.1}}, "min_p: Input should be less than or equal to 1"),
        (
            {"extra_body": {"repetition_penalty": 0}},
            "repetition_penalty: Input should be greater than or equal to 0.01",
        ),
        ({"frequency_penalty": 2.5}, "frequency_penalty: Input should be less than or equal to 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias: expected an object of token id to bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: Input should be less than or equal to 100"),
        ({"logit_bias": {"384": 1}}, r"logit_bias: token ids must lie in \[0, 384\)"),
        ({"logprobs": 6}, "logprobs: Input should be less than or equal to 5"),
        ({"n": 2}, "n: Input should be less than or equal to 1"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"stop": [""]}, "stop: an empty stop string"),
        ({"prompt": ""}, "prompt: no tokens"),
        ({"prompt": ["a", "b"]}, "prompt: expected one text or one list of token ids"),
        ({"prompt": [5, 384]}, r"prompt: token ids must lie in \[0, 384\)"),
        ({"prompt": [-1]}, r"prompt: token ids must lie in \[0, 384\)"),
        ({"stream_options": {"include_usage": True}}, "stream_options: needs stream true"),
    ],
)
async def test_a_bad_request_is_one_clear_line(client: AsyncOpenAI, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        await complete(client, **options)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


async def test_fields_that_ask_for_nothing_are_accepted(client: AsyncOpenAI) -> None:
    neutral = {"user": "a", "tools": [], "response_format": {"type": "text"}, "store": True, "top_p": None, "top_k": -1}
    answer = await complete(client, frequency_penalty=0, presence_penalty=0.0, best_of=1, extra_body=neutral)
    assert answer.choices[0].token_ids == (await complete(client)).choices[0].token_ids


async def test_extreme_sampling_fields_are_served(client: AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    extremes = [{"temperature": 1e-300}, {"temperature": 1e300}, {"top_p": 1e-12}, {"extra_body": {"top_k": 2**40}}]
    for extreme in [*extremes, {"seed": 2**63 - 1}, {"seed": 0}, {"seed": -1}, {"seed": -(2**63)}]:
        answer = await complete(client, **{"temperature": 1.0, **extreme})
        assert answer.usage.completion_tokens == 24
    async with http.get("/health") as response:
        assert response.status == 200


async def test_another_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-9' is not served here"):
        await client.completions.create(model="gpt-9", prompt="a")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items: List should have at least 1 item"),
        ([{"prompt": "a", "target": ""}], "items.0.target: no tokens"),
        ([{"prompt": [], "target": "a"}], "items.0.prompt: no tokens"),
        ([{"prompt": "a", "target": [999]}], "items.0.target: token ids"),
        ([{"prompt": "a", "target": [5] * 512}], "items.0.target: 1 prompt tokens and 512 more"),
        ([{"prompt": "a"}], "items.0.target: Field required"),
    ],
)
async def test_a_bad_score_item_is_named(http: aiohttp.ClientSession, items: list[Any], message: str) -> None:
    status, answer = await post(http, "/score", {"items": items})
    assert status == 400
    assert message in answer["error"]["message"]


async def test_bodies_must_be_json_of_a_permitted_size(http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/score", [1]))[0] == 400
    async with http.post("/score", data=b"{", headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
    async with http.post("/score", data=b'{"items": []}', headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415
    large = io.BytesIO(b'{"items": "' + b"x" * (33 * 2**20) + b'"}')
    async with http.post("/score", data=large, headers={"Content-Type": "application/json"}) as response:
        assert (response.status, (await response.json())["error"]["type"]) == (413, "invalid_request_error")
    async with http.get("/nowhere") as response:
        assert (response.status, response.content_type) == (404, "application/json")


async def test_reconfigure_reaches_the_running_engine(client: AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    before = (await complete(client)).choices[0].token_ids
    status, hot = await post(http, "/reconfigure", {"changes": {"max_num_seqs": 2}})
    assert (status, hot["cost"], hot["config"]["max_num_seqs"]) == (200, "hot", 2)
    status, cache = await post(http, "/reconfigure", {"changes": {"block_size": 8, "kv_cache_dtype": "float32"}})
    assert (status, cache["cost"]) == (200, "cache")
    assert (await complete(client)).choices[0].token_ids == before
    async with http.get("/config") as response:
        assert await response.json() == cache["config"]
    assert (await post(http, "/reconfigure", {"changes": {"block_size": 8}}))[1]["cost"] is None
    restored = {"max_num_seqs": 16, "block_size": 16, "kv_cache_dtype": "auto"}
    assert (await post(http, "/reconfigure", {"changes": restored}))[0] == 200


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"max_num_seq": 2}, 400, "max_num_seq: unknown setting; did you mean max_num_seqs"),
        ({"max_num_seqs": 0}, 400, "max_num_seqs"),
        ({"max_num_seqs": 4, "num_threads": 2}, 409, "a restart is needed to change num_threads"),
    ],
)
async def test_a_refused_reconfiguration_changes_nothing(
    http: aiohttp.ClientSession, changes: dict[str, Any], status: int, message: str
) -> None:
    async with http.get("/config") as response:
        before = await response.json()
    got, answer = await post(http, "/reconfigure", {"changes": changes})
    assert (got, message in answer["error"]["message"]) == (status, True)
    async with http.get("/config") as response:
        assert await response.json() == before


async def test_a_pool_too_small_is_refused_and_the_old_one_goes_on(tiny_llama: Path) -> None:
    with running({"model": str(tiny_llama), "kv_cache_memory_bytes": 4_000_000}) as engine:
        async with engine.client() as client, aiohttp.ClientSession(engine.url) as http:
            status, answer = await post(http, "/reconfigure", {"changes": {"kv_cache_memory_bytes": 10}})
            assert (status, "holds no page" in answer["error"]["message"]) == (409, True)
            await complete(client)


async def hits(http: aiohttp.ClientSession) -> float:
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("servetune:prefix_cache_hits_total "))


async def test_the_prefix_cache_can_be_emptied(client: AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/reconfigure", {"changes": {"enable_prefix_caching": True}}))[0] == 200
    prompt = list(range(10, 60))
    found = [await hits(http)]
    for again in (True, False, False):
        await complete(client, prompt)
        found.append(await hits(http))
        if again:
            continue
        async with http.post("/reset_prefix_cache") as response:
            assert response.status == 200
    # Nothing to find, then three blocks of 16 tokens, then nothing again.
    assert [after - before for before, after in itertools.pairwise(found)] == [0, 48, 0]
    stream = await complete(client, prompt, stream=True, max_tokens=400)
    await anext(aiter(stream))
    async with http.post("/reset_prefix_cache") as response:
        assert (response.status, "in flight" in (await response.json())["error"]["message"]) == (409, True)
    await stream.close()
    while (await post(http, "/reconfigure", {"changes": {"enable_prefix_caching": False}}))[0] == 409:
        await asyncio.sleep(0.01)


async def test_metrics_count_requests(client: AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    await complete(client)
    async with http.get("/metrics") as response:
        text = await response.text()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['servetune:request_success_total{finished_reason="length"}']) >= 1
    assert float(samples["servetune:generation_tokens_total"]) >= 24
    assert float(samples["servetune:inter_token_latency_seconds_count"]) >= 23
    assert samples["servetune:num_requests_running"] == "0.0"
    assert 'servetune:time_to_first_token_seconds_bucket{le="0.0005"}' in samples


async def test_prompts_are_never_logged(client: AsyncOpenAI, engine: Engine) -> None:
    await complete(client, f"{PROMPT} {SECRET}")
    with pytest.raises(openai.BadRequestError):
        await complete(client, f"{PROMPT} {SECRET}", max_tokens=512)
    with pytest.raises(openai.BadRequestError):
        await complete(client, extra_body={SECRET: SECRET})
    assert SECRET not in engine.stderr.read_text()


async def test_a_client_that_leaves_gives_its_pages_back_while_others_stream(
    client: AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    async def pages_used() -> float:
        async with http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("servetune:kv_cache_usage_perc ")))

    stays = await complete(client, [9] * 20, max_tokens=480, stream=True)
    chunks = aiter(stays)
    await anext(chunks)
    alone = await pages_used()
    leaves = await complete(client, [8] * 300, max_tokens=200, stream=True)
    await anext(aiter(leaves))
    both = await pages_used()
    assert both > 4 * alone
    await leaves.close()
    while await pages_used() > both / 2:
        await anext(chunks)  # ends the test with StopAsyncIteration if the pages come back only after this stream
    assert sum([1 async for _ in chunks]) > 0
