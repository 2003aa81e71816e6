"""StudySpec: the study file, validated and frozen. One study file describes one study completely."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from engine.yaml_file import read_mapping, refuse_truth

SHOWN_CHARACTERS = 80
EXPECTED = {
    "path_type": "expected a path",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "tuple_type": "expected a list",
    "too_short": "expected at least one",
}
"""Where pydantic speaks of Python's types."""
PERCENTILE_METRICS = ("ttft", "tpot", "itl", "e2e")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_truth(value, cls.model_fields[str(info.field_name)].annotation)
        return value


class EngineSpec(_Section):
    """The engine under test and the settings that the study does not vary (EngineConfig fields)."""

    name: Literal["bundled"] = "bundled"
    settings: dict[str, Any] = Field(default_factory=dict, description="EngineConfig fields that stay as they are.")
    baseline: dict[str, Any] = Field(
        default_factory=dict, description="Knob values of trial 0; others: engine defaults."
    )
    launch_timeout: float = Field(120.0, gt=0, description="Seconds until a started engine must be healthy.")
    hang_timeout: float = Field(30.0, gt=0, description="Seconds without progress, with work to do: a hang.")
    launcher: tuple[str, ...] = Field(
        (), description="Command that is given --config and --port, such as `taskset -c 0 python -m engine`."
    )


class TrafficSpec(_Section):
    """Recorded traffic: which part to tune on, which to hold out, and how much faster than recorded to replay it.

    time_scale auto: trials climb from the most that the baseline holds; a number: they all run at that load.
    """

    trace: Path = Field(description="Recorded traffic (docs/trace-format.md).")
    tune_window: tuple[float, float] | None = Field(None, description="Seconds of the trace, [start, end).")
    holdout_window: tuple[float, float] | None = Field(None, description="Seconds; finalists are measured on it too.")
    time_scale: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="How many times faster than recorded; auto: as fast as each trial holds."
    )
    drain_timeout: float = Field(10.0, gt=0, description="Seconds after the last arrival; unfinished requests are bad.")

    @field_validator("time_scale", mode="before")
    @classmethod
    def _is_a_load(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"expected auto or a number above 0, given {shown(value)}")
        return value


class SLOSpec(_Section):
    """Bounds of one SLO class in seconds; a request is good when it meets all that are set.

    attainment: share of the offered requests that must be good. fluidity: share of a request's token deadlines that
    must be met; the deadlines are ttft for the first token and tpot more for each one after it.
    """

    ttft: float | None = Field(None, gt=0, description="Time to first token, from the scheduled arrival.")
    tpot: float | None = Field(None, gt=0, description="Time per output token after the first, mean of the request.")
    itl: float | None = Field(None, gt=0, description="Longest gap between two tokens of the request.")
    e2e: float | None = Field(None, gt=0, description="Until the last token, from the scheduled arrival.")
    attainment: float = Field(0.95, gt=0, lt=1, description="Share of the offered requests that must be good.")
    ttft_per_1k_prompt_tokens: float | None = Field(None, gt=0, description="Added to ttft per 1,000 prompt tokens.")
    itl_quantile: float | None = Field(None, gt=0, le=1, description="Which gap itl bounds; none: the longest.")
    fluidity: float | None = Field(None, gt=0, le=1, description="Share of its token deadlines a request must meet.")

    @model_validator(mode="after")
    def _consistent(self) -> SLOSpec:
        has_ttft = self.ttft is not None or self.ttft_per_1k_prompt_tokens is not None
        if self.fluidity is not None and (not has_ttft or self.tpot is None):
            raise ValueError("fluidity needs ttft and tpot, the deadlines of the first token and of those after it")
        if self.itl_quantile is not None and self.itl is None:
            raise ValueError("itl_quantile needs itl, the bound of that gap")
        if not has_ttft and self.tpot is None and self.itl is None and self.e2e is None:
            raise ValueError("expected at least one bound of ttft, tpot, itl, e2e (seconds)")
        return self


class CostSpec(_Section):
    """What the machine costs, to tell goodput per device-hour and per unit of currency."""

    price_per_hour: float = Field(gt=0, description="Of one device (GPU, or machine without one).")
    devices: int = Field(1, ge=1, description="Devices that the engine runs on.")
    currency: str = Field("USD", pattern=r"^[A-Za-z€$£¥]{1,8}$")


class FloorSpec(_Section):
    """What one slice may lose against the full-precision reference. The 95 % bound is what must hold.

    max_nll_increase: nats per token (forced probes). min_recall: share of the answers the reference gets right
    that must stay right (recall probes).
    """

    max_nll_increase: float = Field(0.02, ge=0, description="Nats per token, forced probes.")
    min_recall: float = Field(0.9, ge=0, le=1, description="Of the answers that the reference gets right.")
    max_flips: float | None = Field(None, ge=0, le=1, description="Share of forced positions whose argmax changes.")
    max_kl: float | None = Field(None, ge=0, description="KL divergence from the reference, nats per forced position.")


class QualitySpec(_Section):
    """Probes (JSONL) and floors; `floors` overrides `default_floor` by slice name.

    production_sample: requests of the tuning window that become forced probes of slice "production", the reference's
    own answers their targets. reference_cache: directory in which reference answers outlive the study. probes may be
    left out where there is a production_sample.
    """

    probes: Path | None = Field(None, description="JSONL of forced and recall probes.")
    production_sample: int = Field(0, ge=0, description="Recorded requests that become probes.")
    reference_cache: Path | None = Field(None, description="Directory; reference answers outlive the study there.")
    default_floor: FloorSpec = FloorSpec()  # type: ignore[call-arg]
    floors: dict[str, FloorSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_probes(self) -> QualitySpec:
        if self.probes is None and self.production_sample < 2:
            raise ValueError("expected probes (a JSONL file), or a production_sample of 2 requests or more")
        return self


class TailSpec(_Section):
    """The latency objective: a percentile of one metric in one SLO class (seconds, lower is better)."""

    slo_class: str = Field(description="One of slos.")
    metric: Literal["ttft", "tpot", "itl", "e2e"] = "ttft"
    percentile: float = Field(95.0, ge=1, lt=100)


class BudgetSpec(_Section):
    """When to stop. trials: measured or failed ones besides the baseline. seconds: wall time of the search."""

    trials: int = Field(24, ge=1, description="Besides the baseline.")
    seconds: float | None = Field(None, gt=0, description="Wall time of the search.")
    startup_trials: int = Field(5, ge=1, description="Trials before the sampler models anything: near the baseline.")
    screened: int = Field(
        0, ge=0, description="Trials that the simulator proposes after the baseline, and again once it proved right."
    )
    plateau: bool = Field(True, description="End the search also when it finds nothing better, or expects nothing.")
    sentinel: int = Field(10, ge=0, description="Trials between two replays of the baseline that tell drift; 0: none.")
    finalists: int = Field(
        2,
        ge=0,
        description="Candidates that race, measured again; the winner is measured on the held-out window too.",
    )
    examine: bool = Field(True, description="Measure what each change buys, and what is next to the recommendation.")


class StudySpec(_Section):
    """The study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Also the directory of its run.")
    model: Path = Field(description="Checkpoint directory (Hugging Face).")
    models: tuple[Path, ...] = Field(
        (), description="Checkpoints that may serve in place of `model`, with its tokenizer: searched like a knob."
    )
    draft_model: Path | None = Field(None, description="Checkpoint that guesses tokens; the same tokenizer.")
    engine: EngineSpec = EngineSpec()  # type: ignore[call-arg]
    traffic: TrafficSpec
    slos: dict[str, SLOSpec] = Field(min_length=1)
    quality: QualitySpec
    search_space: Path | dict[str, Any] = Field(description="A file, or `parameters:` in place (tune space show).")
    tail: TailSpec
    budget: BudgetSpec = BudgetSpec()  # type: ignore[call-arg]
    cost: CostSpec | None = None
    seed: int = Field(0, ge=0, description="Of the sampler, of synthetic prompts and of drawn requests.")

    @field_validator("search_space", mode="before")
    @classmethod
    def _is_a_space(cls, value: Any) -> Any:
        if not isinstance(value, str | Path | dict):
            raise ValueError(f"expected a file, or parameters: in place, given {shown(value)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if self.tail.slo_class not in self.slos:
            near = difflib.get_close_matches(self.tail.slo_class, self.slos, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"tail.slo_class: {self.tail.slo_class!r} is not among slos: {', '.join(self.slos)}{hint}")
        return self


def load_spec(path: Path) -> StudySpec:
    """Read study.yaml; relative paths are taken from its own directory. Raises ValueError with one line."""
    return parse_spec(read_mapping(path), source=str(path), base=path.parent)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def parse_spec(values: dict[str, Any], source: str, base: Path) -> StudySpec:
    """Validate the mapping of a study file; see load_spec."""
    try:
        spec = StudySpec.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {first_problem(error)}") from None
    return _resolve_paths(spec, base)


def _resolve_paths(spec: StudySpec, base: Path) -> StudySpec:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (base / path).resolve()

    space = absolute(spec.search_space) if isinstance(spec.search_space, Path) else spec.search_space
    return spec.model_copy(
        update={
            "model": absolute(spec.model),
            "models": tuple((base / path).resolve() for path in spec.models),
            "draft_model": absolute(spec.draft_model),
            "search_space": space,
            "traffic": spec.traffic.model_copy(update={"trace": absolute(spec.traffic.trace)}),
            "quality": spec.quality.model_copy(
                update={
                    "probes": absolute(spec.quality.probes),
                    "reference_cache": absolute(spec.quality.reference_cache),
                }
            ),
        }
    )


def first_problem(error: ValidationError) -> str:
    """The first mistake in one line: the key, what was expected, the nearest valid key."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _valid_keys(problem["loc"][:-1]), n=1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    message = EXPECTED.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    given = "" if problem["type"] in ("missing", "value_error") else f" (given: {shown(problem['input'])})"
    return f"{key}: {message}{given}" if key else message


def shown(value: Any) -> str:
    """A value from a file, for one line."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _valid_keys(location: tuple[int | str, ...]) -> list[str]:
    """Fields of the section at `location`; every section's fields where the location leads through a mapping."""
    sections: list[type[BaseModel]] = [StudySpec]
    for part in location:
        nested = [s.model_fields[str(part)].annotation for s in sections if str(part) in s.model_fields]
        sections = [n for n in nested if isinstance(n, type) and issubclass(n, BaseModel)] or [SLOSpec, FloorSpec]
    return [name for section in sections for name in section.model_fields]
