"""The corpus: determinism, slices, facts at the stated distance, held-out probes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.mini import corpus, hard, probes, recall, rows, tokenizer, words

MINI = Path(probes.__file__).parent / "mini"


@pytest.fixture(scope="module")
def tok() -> tokenizer.Tokenizer:
    return tokenizer.load(MINI)


@pytest.mark.parametrize("name", corpus.SLICES)
def test_a_document_is_a_function_of_split_seed_and_index(name: str) -> None:
    def make(split: str, seed: int, index: int) -> str:
        return corpus.document(name, corpus.stream(split, seed, index), 300)

    assert make("train", 1, 2) == make("train", 1, 2)
    assert len({make("train", 1, 2), make("train", 1, 3), make("train", 2, 2), make("probe", 1, 2)}) == 4


@pytest.mark.parametrize("name", corpus.SLICES)
def test_a_document_has_about_the_length_asked_for(name: str, tok: tokenizer.Tokenizer) -> None:
    text = corpus.document(name, corpus.stream("test", 0, 0), 600, lambda piece: len(tok.encode(piece).ids))
    assert 500 <= len(tok.encode(text).ids) <= 1050  # whole documents; the longest is a log of six jobs


def test_the_shifted_slice_shares_few_words_with_the_draft_s_slices() -> None:
    shifted = {w for i in range(40) for w in corpus.document("protocol", corpus.stream("t", 0, i), 80).split()}
    others = {w for name in corpus.DRAFT_SLICES if name != "recall" for i in range(40)
              for w in corpus.document(name, corpus.stream("t", 0, i), 200).split()}  # fmt: skip
    assert corpus.SHIFTED_SLICE not in corpus.DRAFT_SLICES
    assert len(shifted & others) <= 0.1 * len(shifted)


def test_the_draft_s_rows_never_show_the_shifted_slice(tok: tokenizer.Tokenizer) -> None:
    def texts(slices: tuple[str, ...]) -> str:
        made = [make(corpus.stream("t", 5, i), tok, 512, slices) for i in range(12)
                for make in (rows.text_row, rows.recall_row)]  # fmt: skip
        return "".join(tok.decode(ids, skip_special_tokens=False) for ids in made)

    assert "aliquot" in texts(corpus.SLICES)
    assert "aliquot" not in texts(corpus.DRAFT_SLICES)


def test_fact_keys_occur_in_no_other_slice() -> None:
    for name in corpus.GENERATORS:
        text = corpus.document(name, corpus.stream("t", 1, 0), 3000).lower()
        assert not set(words.FACT_KEYS) & set(text.replace(".", " ").replace(",", " ").split())


def test_facts_of_a_document_share_neither_keys_nor_value_words() -> None:
    facts = recall.draw_facts(corpus.stream("t", 0, 0), 40)
    assert len({fact.key for fact in facts}) == 40
    assert len({word for fact in facts for word in fact.value.split()}) == 120


def test_a_recall_probe_states_its_answer_once_and_far_from_the_question(tok: tokenizer.Tokenizer) -> None:
    distances = []
    for index in range(40):
        probe = probes.probe("recall", corpus.stream("probe-recall", 3, index), tok)
        assert probe.prompt.count(probe.target) == 1
        assert probe.target.split()[1] in probe.prompt.rsplit("What is the record of ", 1)[1]
        length = len(tok.encode(probe.prompt).ids)
        assert length <= probes.LONGEST_PROMPT
        distances.append(length - len(tok.encode(probe.prompt[: probe.prompt.index(probe.target)]).ids))
    assert sum(distance >= 400 for distance in distances) >= 24


def test_a_document_prompt_contains_the_answer_in_its_first_part(tok: tokenizer.Tokenizer) -> None:
    for index in range(10):
        text, answer = corpus.document_prompt(corpus.stream("traffic", 0, index), 900)
        assert 600 <= len(tok.encode(text).ids) <= 1250
        assert text.index(answer) < 0.75 * len(text)


def test_forced_probes_tokenize_the_same_in_two_pieces_as_in_one(tok: tokenizer.Tokenizer) -> None:
    for name in corpus.SLICES:
        for index in range(6):
            probe = probes.probe(name, corpus.stream("test", 0, index), tok)
            pieces = tok.encode(probe.prompt).ids + tok.encode(probe.target).ids
            assert tok.encode(probe.prompt + probe.target).ids == pieces
            if probe.kind == "forced":
                assert 12 <= len(tok.encode(probe.target).ids) <= 48


def test_the_probe_file_holds_every_slice_and_depends_on_its_seed_alone(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        probes.main(["--out", str(file), "--seed", seed, "--per-slice", "2"])
    first, second, other = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert first == second
    assert {line["slice"] for line in first} == {*corpus.SLICES, *hard.SLICES}
    known = {"id", "slice", "kind", "prompt", "target"}
    assert all(set(line) == known | ({"depth", "length"} if line["kind"] == "recall" else set()) for line in first)
    assert not {line["prompt"] for line in first if line["kind"] == "recall"} & {line["prompt"] for line in other}


def test_probe_streams_are_not_training_streams() -> None:
    train = {corpus.stream("train", seed, index).random() for seed in range(50) for index in range(20)}
    held_out = {corpus.stream(f"probe-{name}", seed, index).random()
                for name in corpus.SLICES for seed in range(5) for index in range(20)}  # fmt: skip
    assert not train & held_out


def test_hard_probes_tokenize_the_same_in_two_pieces_as_in_one(tok: tokenizer.Tokenizer) -> None:
    for name in hard.SLICES:
        for index in range(4):
            probe = hard.probe(name, corpus.stream("test", 1, index), tok, 600)
            whole = tok.encode(probe.prompt + probe.target).ids
            assert whole == tok.encode(probe.prompt).ids + tok.encode(probe.target).ids
            assert name == hard.RARE or 300 < len(whole) < 1000


def test_what_is_written_of_a_recall_probe_says_where_the_answer_stands(tok: tokenizer.Tokenizer) -> None:
    probe = probes.recall_probe(corpus.stream("test", 2, 0), 500, tok)
    line = probes.written(probe, "a", tok)
    assert probe.prompt[round(line["depth"] * len(probe.prompt)) - 20 :].count(probe.target) == 1
    assert line["length"] == pytest.approx(500, abs=120)
