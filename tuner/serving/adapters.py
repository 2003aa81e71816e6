"""ServingConfig in the words of the engine that runs it: configuration file, command line, cost of a change."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.config import EngineConfig, ReconfigurationCost, knobs, parse_config
from engine.memory import DoesNotFit as PlanDoesNotFit
from engine.memory import MemoryPlan, plan_memory
from tuner.errors import ConfigRejected, DoesNotFit
from tuner.serving.config import ServingConfig
from tuner.serving.engine_file import engine_file

BUNDLED_COMMAND = (sys.executable, "-m", "engine", "--drain-timeout", "0")
"""What still runs when the tuner ends its engine is of no use to anybody."""
QUALITY_KNOBS = (
    "model", "dtype", "weight_dtype", "weight_group_size", "load_format", "max_model_len", "prompt_truncation",
    "kv_cache_dtype", "kv_window", "kv_sink_tokens", "kv_heavy_tokens",
)  # fmt: skip
"""What the answers depend on, beyond rounding: see quality_key."""
STEP_KNOBS = ("block_size", "max_num_batched_tokens", "prefill_chunk_size")
"""What the answers depend on with kv_heavy_tokens too: it evicts after each step, by pages."""
REFERENCE_KNOBS: Mapping[str, Any] = {
    "weight_dtype": "auto",
    "kv_cache_dtype": "auto",
    "kv_window": None,
    "kv_heavy_tokens": 0,
    "num_speculative_tokens": 0,
    "prefill_chunk_size": None,
}
"""Weights as shipped, full-precision KV, nothing evicted, no speculation."""

PROBE_KNOBS: Mapping[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "prefill_chunk_size": None}
"""Hot settings that the probes are asked with: they change no answer (see quality_key), only how long it takes."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that an engine reserves, by arithmetic. sequence: of the KV pool, by one sequence of full length."""

    weights: int
    kv_pool: int
    sequence: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_pool


def engine_config(config: ServingConfig) -> EngineConfig:
    """The validated engine configuration. Raises ConfigRejected: one line naming the field."""
    try:
        return parse_config(config.values, source=f"engine {config.engine}")
    except ValueError as error:
        raise ConfigRejected(str(error)) from None


def default_values(names: Sequence[str]) -> dict[str, Any]:
    """The engine's own defaults of these knobs. Raises ValueError for a name that it does not know."""
    defaults = {knob.name: knob.default for knob in knobs()}
    for name in names:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"search_space: {name}: the bundled engine has no such setting{hint}")
    return {name: defaults[name] for name in names}


def check_values(name: str, values: Sequence[Any]) -> None:
    """Raises ValueError for a value of this knob that the engine never takes, whatever the others are."""
    for value in values:
        try:
            EngineConfig.model_validate({"model": "any", name: value})
        except ValidationError as error:
            problems = [problem["msg"] for problem in error.errors() if problem["loc"][:1] == (name,)]
            if problems:
                raise ValueError(f"search_space: {name}: the engine takes no {value!r}: {problems[0]}") from None


def quality_key(config: ServingConfig) -> str:
    """Equal for configurations whose answers are equal up to rounding: paged reads and exact rejection sampling
    make block size, batch, chunk and speculation depth irrelevant to quality. The model counts where it is a knob."""
    engine = engine_config(config)
    names = QUALITY_KNOBS + (STEP_KNOBS if engine.kv_heavy_tokens else ())
    values = {name: getattr(engine, name) for name in names}
    if engine.kv_window is None:
        values["kv_sink_tokens"] = None
    if engine.weight_dtype != "int4":
        values["weight_group_size"] = None
    if engine.prompt_truncation == "refuse":
        values["max_model_len"] = None
    return "|".join(f"{name}={values[name]}" for name in names if name != "model" or "model" in config.knobs)


def for_probes(config: ServingConfig) -> ServingConfig:
    """The same configuration with PROBE_KNOBS; unchanged where they would change the answers."""
    if engine_config(config).kv_heavy_tokens:
        return config
    return ServingConfig(config.engine, config.settings, {**config.knobs, **PROBE_KNOBS})


def without_speculation(config: ServingConfig) -> ServingConfig:
    """The same configuration, guessing nothing."""
    return ServingConfig(config.engine, config.settings, {**config.knobs, "num_speculative_tokens": 0})


def change_cost(old: ServingConfig, new: ServingConfig) -> ReconfigurationCost | None:
    """What turning `old` into `new` costs a running engine; None: nothing changes."""
    return engine_config(old).cost_of(engine_config(new))


def changes(old: ServingConfig, new: ServingConfig) -> dict[str, Any]:
    """Fields to send to /reconfigure."""
    before, after = engine_config(old).model_dump(), engine_config(new).model_dump()
    return {name: value for name, value in after.items() if before[name] != value}


def memory(config: ServingConfig, gpu: bool) -> Memory:
    """What a configuration reserves; weights are those of the draft model, too. gpu: the engine ran on one.

    Raises ValueError when the configuration or its checkpoint's config.json cannot be read.
    """
    plan = _plan(parse_config(config.values, source=f"engine {config.engine}"), gpu)
    return Memory(plan.weight_bytes + plan.draft_weight_bytes, plan.pool.pool_bytes, plan.sequence_bytes)


def check_fits(config: ServingConfig, host_bytes: int | None, gpu_bytes: int | None) -> None:
    """Raises DoesNotFit when weights and pages take more than the device has; None: what it has is not known.

    Activations are not counted, so what passes may still run out of memory. A checkpoint whose config.json the planner
    cannot read is left for the engine to judge.
    """
    engine, gpu = engine_config(config), gpu_bytes is not None
    available = gpu_bytes if _on_gpu(engine, gpu) else host_bytes
    try:
        plan = _plan(engine, gpu)
        if available is not None:
            plan.check(available)
    except PlanDoesNotFit as error:
        raise DoesNotFit(str(error)) from None
    except (ValueError, OSError):
        return


def _on_gpu(engine: EngineConfig, gpu: bool) -> bool:
    return engine.device == "cuda" or (engine.device == "auto" and gpu)


def _plan(engine: EngineConfig, gpu: bool) -> MemoryPlan:
    on_gpu = _on_gpu(engine, gpu)
    placed = engine.model_copy(update={"device": "cuda" if on_gpu else "cpu"})
    return plan_memory(placed, "bfloat16" if on_gpu else "float32")


def write_config(config: ServingConfig, directory: Path) -> Path:
    """Write the engine's configuration file into `directory` and return its path. Raises ConfigRejected."""
    text = engine_text(config)
    path = directory / "engine.yaml"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def engine_text(config: ServingConfig) -> str:
    """What the bundled engine is launched with: engine.yaml. Raises ConfigRejected."""
    return engine_file(engine_config(config), frozenset(config.knobs))


def command(config_path: Path, launcher: Sequence[str]) -> list[str]:
    """The command line that serves `config_path` on a free port of the loopback interface."""
    return [*(launcher or BUNDLED_COMMAND), "--config", str(config_path), "--port", "0"]
