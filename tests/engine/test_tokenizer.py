"""Tokenizer files, chat templates, and the incremental detokenizer against decoding everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_engine import CHAT_TEMPLATE, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers

from engine.tokenizer import Detokenizer, Tokenizer

SENTENCES = st.text(alphabet="the quick fox \n,.é€你好🦊", max_size=40)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def byte_level(checkpoint: Path) -> Tokenizer:
    return Tokenizer(checkpoint)


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Llama 2 has it: words begin with a mark, unknown characters fall back to byte tokens."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thequickfox,.", "▁the", "▁fox", "qu"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("q", "u"), ("▁", "f"), ("▁f", "o"), ("▁fo", "x")]
    pieces += ["".join(pair) for pair in merges if "".join(pair) not in pieces]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    directory = tmp_path_factory.mktemp("byte-fallback")
    raw.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


def incremental(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.add(id) for id in ids), detokenizer.finish()]


@given(text=st.text())
def test_pieces_join_to_the_whole_text(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    assert "".join(incremental(Detokenizer(byte_level), ids)) == byte_level.decode(ids)


@given(ids=st.lists(st.integers(0, 299), max_size=80))
def test_pieces_of_arbitrary_tokens_join_to_their_decoding(byte_level: Tokenizer, ids: list[int]) -> None:
    """Random tokens are mostly invalid UTF-8: the replacement marks must come out in the same places."""
    assert "".join(incremental(Detokenizer(byte_level), ids)) == byte_level.decode(ids)


@given(text=SENTENCES)
def test_pieces_join_with_byte_fallback(byte_fallback: Tokenizer, text: str) -> None:
    ids = byte_fallback.encode(text)
    assert "".join(incremental(Detokenizer(byte_fallback), ids)) == byte_fallback.decode(ids)


@given(text=SENTENCES.filter(bool), data=st.data())
def test_output_continues_the_prompt(byte_fallback: Tokenizer, text: str, data: st.DataObject) -> None:
    """The decoder drops the first space of a text; the output is not the first."""
    ids = byte_fallback.encode(text)
    cut = data.draw(st.integers(1, len(ids)))
    prompt_text = byte_fallback.decode(ids[:cut])
    if not prompt_text.endswith("\ufffd"):
        output = "".join(incremental(Detokenizer(byte_fallback, ids[:cut]), ids[cut:]))
        assert prompt_text + output == byte_fallback.decode(ids)


@given(text=st.text(alphabet="abé🦊"), stop=st.lists(st.text(alphabet="abé🦊", min_size=1, max_size=4), min_size=1))
def test_nothing_of_a_stop_string_is_given_out(byte_level: Tokenizer, text: str, stop: list[str]) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(byte_level, stop=stop)
    ends = [position for string in stop if (position := text.find(string)) >= 0]
    pieces = incremental(detokenizer, ids)
    # Of overlapping stop strings the one completed first ends the text.
    first_completed = min((text.find(s) + len(s), text.find(s)) for s in stop if s in text) if ends else (0, len(text))
    assert "".join(pieces) == text[: first_completed[1]]
    assert detokenizer.stopped == bool(ends)


def test_an_incomplete_character_is_withheld_until_it_is_complete(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a🦊b", add_special_tokens=False)
    assert incremental(Detokenizer(byte_level), ids) == ["a", "", "", "", "🦊", "b", ""]


def test_a_possible_beginning_of_a_stop_string_is_withheld_and_then_released(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("Q: R", add_special_tokens=False)
    assert incremental(Detokenizer(byte_level, stop=["Q: A"]), ids) == ["", "", "", "Q: R", ""]


def test_special_tokens_are_recognised_in_text_and_left_out_of_output(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|user|>a<|end|>") == [0, 2, *byte_level.encode("a", add_special_tokens=False), 1]
    assert "".join(incremental(Detokenizer(byte_level), byte_level.encode("<|user|>a<|end|>"))) == "a"


def test_end_of_sequence_is_taken_from_generation_config_first(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert Tokenizer(tmp_path).eos_token_ids == (1,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert Tokenizer(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert Tokenizer(tmp_path).eos_token_ids == (3, 4)


@pytest.mark.parametrize("where", ["string", "list", "file"])
def test_chat_template_places(checkpoint: Path, tmp_path: Path, where: str) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    template = {"string": CHAT_TEMPLATE, "list": [{"name": "default", "template": CHAT_TEMPLATE}], "file": "unused"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template[where]}))
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|user|>hi<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "cannot be parsed"),
        (None, "no chat template"),
    ],
)
def test_a_chat_template_that_refuses_is_one_clear_line(
    checkpoint: Path, tmp_path: Path, template: str | None, message: str
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": "hi"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"version": "1.0"}'])
def test_a_missing_or_broken_tokenizer_is_a_value_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
