"""What the quality check sees of the real engine: its storage dtypes apart, and itself as itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PATIENCE
from tuner.scoring.probes import Probe, against
from tuner.scoring.quality import Floor, QualityScore, quality_score
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, LiveTestbed

ROOT = Path(__file__).parent.parent.parent
KNOBS: dict[str, dict[str, Any]] = {
    "again": {},
    "bfloat16": {"kv_cache_dtype": "bfloat16"},
    "int8": {"kv_cache_dtype": "int8"},
    "int4": {"kv_cache_dtype": "int4"},
}
SLICES = ("chat", "rare", "early")
A_A_NATS = 1e-5
"""docs/metrics.md states it."""


def config(**knobs: Any) -> ServingConfig:
    model = ROOT / "engine" / "mini" / "mini"
    return ServingConfig("bundled", {"model": str(model), "device": "cpu", "kv_cache_memory_bytes": 2 * 10**7}, knobs)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, QualityScore]:
    """Each configuration against the reference, on three probes a slice of the demo and two chats without a target."""
    lines = [json.loads(line) for line in (ROOT / "examples" / "demo" / "probes.jsonl").read_text().splitlines()]
    probes = [Probe(**line) for name in SLICES for line in [x for x in lines if x["slice"] == name][:3]]
    for i, text in enumerate(("How do I start with chess?", "What is good about music?")):
        probes.append(Probe(f"own-{i}", "production", "forced", ({"role": "user", "content": text},), ()))
    settings = EngineSettings(tmp_path_factory.mktemp("engine"), launch_timeout=PATIENCE, hang_timeout=PATIENCE)
    with LiveTestbed(settings, {}) as testbed:
        reference = testbed.answer(config(), probes)
        asked = against(probes, reference)
        floors = dict.fromkeys((*SLICES, "production"), Floor())
        # In another order they meet other probes in their batches, which is all that may change between two times.
        answers = {name: testbed.answer(config(**knobs), asked[::-1]) for name, knobs in KNOBS.items()}
        speculating = config(num_speculative_tokens=2, speculative_method="ngram")
        checked = testbed.speculation(speculating, probes)
    lossless = [(domain.slice, domain.answers, domain.lossless) for domain in checked]
    assert lossless == [("chat", 3, True), ("rare", 3, True)]
    return {name: quality_score(reference, records, floors) for name, records in answers.items()}


def test_the_same_configuration_twice_differs_by_no_more_than_the_stated_floor(scores: dict[str, QualityScore]) -> None:
    for part in scores["again"].slices:
        assert abs(part.nll_increase or 0) < A_A_NATS and (part.kl or 0) < A_A_NATS and part.flips == 0, part


def test_each_storage_dtype_has_a_divergence_of_its_own_in_every_slice(scores: dict[str, QualityScore]) -> None:
    for index, name in enumerate(sorted((*SLICES, "production"))):
        kl = {knobs: score.slices[index].kl or 0.0 for knobs, score in scores.items()}
        assert scores["again"].slices[index].name == name
        near, far = sorted((kl["bfloat16"], kl["int8"]))
        assert 10 * kl["again"] < near < far and 3 * far < kl["int4"]


def test_an_answer_of_the_reference_is_what_it_would_say_again(scores: dict[str, QualityScore]) -> None:
    (production,) = [part for part in scores["again"].slices if part.name == "production"]
    assert production.accuracy == production.reference_accuracy == 1.0
