"""EngineConfig and engine.yaml: what is refused, in which words, and what a change costs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from engine.config import COSTS, EngineConfig, knobs, load_config, parse_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_num_seq": 3}, "max_num_seq: unknown setting; did you mean max_num_seqs?"),
        ({"max_num_seqs": 0}, "max_num_seqs: Input should be greater than or equal to 1 (given: 0)"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype: Input should be 'auto', 'float32', 'bfloat16'"),
        ({"num_speculative_tokens": 2}, "num_speculative_tokens: needs draft_model"),
        ({"max_num_seqs": True}, "max_num_seqs: expected no true; YAML reads yes, no, on and off as true and false"),
        ({"prompt_lookup_min": 5}, "prompt_lookup_min: 5 is above prompt_lookup_max 4"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens: 32 is below max_num_seqs 64"),
    ],
)
def test_bad_values_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        parse_config({"model": "m", **values}, "engine.yaml")
    assert str(caught.value).startswith("engine.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("model: [", "not YAML"), ("- a", "expected a mapping"), ("max_num_seqs: 4", "model: Field required")],
)
def test_bad_files_get_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(file)


def test_model_directories_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("model: weights/m\ndraft_model: /abs/d\n")
    config = load_config(file)
    assert config.model == str(tmp_path / "weights/m")
    assert config.draft_model == "/abs/d"


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({}, None),
        ({"max_num_seqs": 8}, "hot"),
        ({"kv_window": 64}, "cache"),
        ({"max_num_seqs": 8, "block_size": 8}, "cache"),
        ({"dtype": "bfloat16", "max_num_seqs": 8}, "process"),
    ],
)
def test_cost_of_a_change_is_that_of_its_dearest_field(changes: dict[str, Any], cost: str | None) -> None:
    config = EngineConfig(model="m")
    assert config.cost_of(config.updated(changes)) == cost


def test_every_field_declares_unit_and_cost() -> None:
    found = knobs()
    assert [k.name for k in found] == list(EngineConfig.model_fields)
    assert all(k.unit and k.description and k.cost in COSTS for k in found)


def test_the_documentation_table_is_generated_from_the_fields() -> None:
    page = Path(__file__).parents[2] / "docs" / "engine-config.md"
    generate = runpy.run_path(str(page.with_name("generate.py")))
    assert page.read_text(encoding="utf-8") == generate["render"](), "run: python docs/generate.py"
