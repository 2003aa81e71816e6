"""The shipped model directories, the dense network, and training in small."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.mini import corpus, measure, rows, tokenizer, train
from engine.mini.network import Network, Shape
from engine.mini.slices import END

HERE = Path(measure.__file__).parent
TINY = Shape(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, max_position_embeddings=64)  # fmt: skip


@pytest.fixture(scope="module")
def tok() -> tokenizer.Tokenizer:
    return tokenizer.load(HERE / "mini")


@pytest.mark.parametrize("name", ["mini", "mini-draft"])
def test_config_and_weights_of_a_shipped_model_agree(name: str) -> None:
    config = json.loads((HERE / name / "config.json").read_text())
    shape = Shape(**{field.name: config[field.name] for field in fields(Shape)})
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert shape == train.SHAPES[name]
    expected = {key: tuple(p.shape) for key, p in Network(shape).named_parameters()}
    with safe_open(HERE / name / "model.safetensors", framework="pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == expected  # noqa: SIM118
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
    assert (HERE / name / "model.safetensors").stat().st_size <= 12_000_000


def test_sizes_are_in_the_stated_range_and_the_draft_is_cheaper() -> None:
    sizes = {name: sum(p.numel() for p in Network(shape).parameters()) for name, shape in train.SHAPES.items()}
    assert 3_000_000 <= sizes["mini"] <= 8_000_000
    assert sizes["mini-draft"] * 3 <= sizes["mini"]


def test_both_models_ship_the_same_tokenizer_and_it_is_reproduced_by_its_recipe() -> None:
    shipped = [(HERE / name / "tokenizer.json").read_text() for name in ("mini", "mini-draft")]
    assert shipped[0] == shipped[1]
    assert json.loads(tokenizer.train_tokenizer().to_str()) == json.loads(shipped[0])


def test_the_tokenizer_round_trips_every_slice_and_foreign_bytes(tok: tokenizer.Tokenizer) -> None:
    texts = [corpus.document(name, corpus.stream("test", 0, 0), 200) for name in corpus.SLICES]
    for text in (*texts, "Grüße, 世界 \x00\t  42\r\n"):
        assert tok.decode(tok.encode(text).ids, skip_special_tokens=False) == text
    assert tok.get_vocab_size() == 2048
    assert tok.encode("<|bos|><|user|>a<|end|>").ids[:2] == [1, 4]


def test_the_end_mark_is_the_eos_everywhere() -> None:
    end = tokenizer.SPECIAL_TOKENS.index(END)
    for name in ("mini", "mini-draft"):
        assert json.loads((HERE / name / "config.json").read_text())["eos_token_id"] == end
        assert json.loads((HERE / name / "tokenizer_config.json").read_text())["eos_token"] == END


def test_the_chat_template_renders_the_prompts_that_the_models_were_trained_on() -> None:
    jinja2 = pytest.importorskip("jinja2")
    settings = json.loads((HERE / "mini" / "tokenizer_config.json").read_text())
    template = jinja2.Template(settings["chat_template"])
    rendered = template.render(
        messages=[{"role": "user", "content": "Hi."}], bos_token=settings["bos_token"], add_generation_prompt=True
    )
    assert rendered == corpus.as_chat("Hi.")


def test_both_shipped_models_recall_facts(tok: tokenizer.Tokenizer) -> None:
    mini, draft = (measure.load_network(HERE / name) for name in ("mini", "mini-draft"))
    assert measure.recall_accuracy(mini, tok, 300, count=8, split="test") >= 0.75
    assert measure.recall_accuracy(draft, tok, 300, count=8, split="test") >= 0.6


def test_a_copying_row_predicts_only_what_it_has_shown() -> None:
    inputs, targets = rows.copy_row(corpus.stream("test", 0, 0), 96, 64, 2048)
    assert len(inputs) == len(targets) == 96
    scored = [position for position, target in enumerate(targets) if target != rows.IGNORED]
    assert scored
    assert all(targets[position] in inputs[: position + 1] for position in scored)
    assert all(targets[position] == inputs[position + 1] for position in scored[:-1])


def test_the_network_is_causal() -> None:
    network = Network(TINY).eval()
    tokens = torch.randint(6, 2048, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 9] += 1
    before, after = network(tokens), network(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_three_steps_and_a_resumed_run_give_the_same_weights(tmp_path: Path, tok: tokenizer.Tokenizer) -> None:
    phases = [train.Phase("tiny", 3, 2, 48, rows.Mixture(0.3, 0.3))]

    def finished(directory: Path, stops: tuple[int, ...]) -> train.Run:
        directory.mkdir()
        for stop in stops:
            run = train.Run("tiny", TINY, directory)
            run.resume()
            train.train(run, phases, tok, compile_network=False, until=stop)
        return run

    whole, resumed = finished(tmp_path / "whole", (3,)), finished(tmp_path / "resumed", (2, 3))
    start = dict(Network(TINY).named_parameters())
    others = dict(resumed.network.named_parameters())
    for name, one in whole.network.named_parameters():
        assert torch.equal(one, others[name]), name
        assert not torch.equal(one, start[name]), name


def test_an_exported_model_loads_as_the_network_rounded_to_bfloat16(tmp_path: Path, tok: tokenizer.Tokenizer) -> None:
    run = train.Run("tiny", TINY, tmp_path)
    train.export(run, tok, tmp_path / "tiny")
    loaded = measure.load_network(tmp_path / "tiny")
    for name, parameter in run.network.named_parameters():
        assert torch.equal(loaded.state_dict()[name], parameter.detach().bfloat16().float()), name
    assert set(load_file(tmp_path / "tiny" / "model.safetensors")) == {n for n, _ in run.network.named_parameters()}


def test_transformers_computes_the_same_logits_from_the_exported_directory(tok: tokenizer.Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM.from_pretrained(HERE / "mini", dtype=torch.float32)
    ids = torch.tensor([tok.encode(corpus.as_chat("How do I start with chess?")).ids])
    with torch.no_grad():
        ours, theirs = measure.load_network(HERE / "mini")(ids), reference(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3)
