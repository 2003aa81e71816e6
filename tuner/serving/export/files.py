"""Deploy files: a measured configuration in the words of the engine that will serve it.

Every EngineConfig field has one row per foreign engine that says how well it carries over: exact, approximate, or
none. manifests.py puts an engine into compose, Kubernetes, Helm values or systemd.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig, parse_config
from tuner.serving.config import ServingConfig
from tuner.serving.engine_file import comment, engine_file, entry
from tuner.serving.export.deployment import Deployment
from tuner.serving.export.guard_rails import GuardRail, Held, guard_rails
from tuner.serving.export.llamacpp import LLAMACPP, llamacpp_fixed
from tuner.serving.export.manifests import MANIFESTS, instructions, manifest
from tuner.serving.export.mapping import Fixed, Row
from tuner.serving.export.sglang import SGLANG, sglang_fixed, sglang_name
from tuner.serving.export.tensorrt_llm import TENSORRT_LLM
from tuner.serving.export.vllm import VLLM, vllm_fixed

ENGINES = {"engine": "engine.yaml", "vllm": "vllm.yaml", "sglang": "sglang.yaml", "tensorrt-llm": "tensorrt_llm.yaml",
           "llamacpp": "llamacpp.sh"}  # fmt: skip
"""Target -> the file that its engine reads."""
TARGETS = (*ENGINES, *MANIFESTS)
IMAGE_TARGETS = tuple(target for target in MANIFESTS if target != "systemd")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the configuration comes from; goes into the header of each file. date: as the caller writes it. remarks:
    what who deploys it must know."""

    study: str
    trial: int
    date: str
    remarks: tuple[str, ...] = ()


def export(
    target: str,
    config: ServingConfig,
    *,
    out: Path,
    model_name: str,
    provenance: Provenance,
    engine: str | None = None,
    image: str | None = None,
    held: Held | None = None,
    on_gpu: bool = True,
    replicas: int = 1,
) -> list[Path]:
    """Write the files of `target` (one of TARGETS) into the directory `out` and return their paths.

    model_name: the name clients ask for, where the target can set it. engine, image: what a manifest runs, by
    default vllm; the engine's own file is written beside it. held: what guard rails follow from; None names none.
    on_gpu: it was measured on one. replicas: servers that share the traffic, where the target can say so. Raises
    ValueError for an unknown target, for an engine or image that it does not run, for values that are no
    EngineConfig, and when the model's longest sequence cannot be read; nothing is written then.
    """
    served = served_by(target, engine)
    if image is not None and target not in IMAGE_TARGETS:
        raise ValueError(f"--image: --to {target} runs no image; expected --to {', '.join(IMAGE_TARGETS)}")
    engine_config = parse_config(config.values, source=f"configuration {config.fingerprint}")
    header = _header(config, provenance)
    rails = () if held is None else guard_rails(engine_config, held)
    text = _engine_text(served, engine_config, header, frozenset(config.knobs), model_name, rails)
    files = {ENGINES[served]: text}
    if target in MANIFESTS:
        run = Deployment(
            served, ENGINES[served], text, engine_config, model_name, config.fingerprint, image, on_gpu, replicas
        )
        told = (*instructions(target, run), *_left_to_helm(target, engine_config, rails))
        files[MANIFESTS[target]] = header + "".join(map(comment, told)) + manifest(target, run)
    out.mkdir(parents=True, exist_ok=True)
    return [_write(out / name, content) for name, content in files.items()]


def served_by(target: str, engine: str | None) -> str:
    """The engine whose words are written: of a manifest `engine`, by default vllm. Raises ValueError for an unknown
    word, and for an engine beside a target that is another one."""
    _known("--to", "target", target, TARGETS)
    if target in MANIFESTS:
        _known("--engine", "engine", engine or "vllm", tuple(ENGINES))
        return engine or "vllm"
    if engine is not None and engine != target:
        raise ValueError(f"--engine {engine}: --to {target} writes for {target}; expected --to {', '.join(MANIFESTS)}")
    return target


def _known(option: str, kind: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        near = difflib.get_close_matches(given, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(choices)}"
        raise ValueError(f"{option} {given}: unknown {kind}{hint}")


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _engine_text(
    target: str,
    config: EngineConfig,
    header: str,
    tuned: frozenset[str],
    model_name: str,
    rails: tuple[GuardRail, ...],
) -> str:
    if target == "engine":
        run = comment("Run: python -m engine --config engine.yaml --port 8000")
        return f"{header}{run}{''.join(_rails_of_ours(rails))}\n{engine_file(config, tuned)}"
    if target == "vllm":
        lines = [comment("Run: vllm serve --config vllm.yaml --host 127.0.0.1 --port 8000"), _caution("vLLM")]
        lines += [*_named("served-model-name", model_name), *_rows(VLLM, config), *_fixed(vllm_fixed(config))]
        lines += _rails(VLLM, config, rails)
    elif target == "sglang":
        lines = [comment("Run: python -m sglang.launch_server --config sglang.yaml --port 8000"), _caution("SGLang")]
        lines += [
            *_named("served-model-name", sglang_name(model_name)),
            *_rows(SGLANG, config),
            *_fixed(sglang_fixed(config)),
        ]
        lines += _rails(SGLANG, config, rails)
    elif target == "tensorrt-llm":
        lines = [comment(f"Run: trtllm-serve {shlex.quote(config.model)} --config tensorrt_llm.yaml --port 8000")]
        lines += [_caution("TensorRT-LLM"), *_nested(TENSORRT_LLM, config, rails)]
    else:
        return "#!/bin/sh\n" + header + "".join(_script(config, model_name, rails))
    return header + "".join(lines)


def _caution(name: str) -> str:
    return comment(f"Measured on servetune's engine, not on {name}: exact means the same setting, not the same speed.")


def _header(config: ServingConfig, provenance: Provenance) -> str:
    origin = (
        f"servetune: study {provenance.study}, trial {provenance.trial}, configuration {config.fingerprint}, "
        f"{provenance.date}"
    )
    return "".join(map(comment, (origin, *provenance.remarks)))


def _named(flag: str, model_name: str) -> Iterator[str]:
    yield "\n" + comment(f"{flag}: the name that clients ask for")
    yield entry(flag, model_name)


def _rows(rows: tuple[Row, ...], config: EngineConfig) -> Iterator[str]:
    """Each row's comment, and its flag as a line of YAML where it has a value."""
    for row in rows:
        mapped = row.rule(config)
        yield "\n" + _about(row, mapped.fit, mapped.note)
        if mapped.value is not None:
            assert row.flag is not None, row.knob
            yield entry(row.flag, mapped.value)


def _about(row: Row, fit: str, note: str) -> str:
    return comment(f"{row.knob} -> {f'--{row.flag}' if row.flag else 'no flag'}: {fit}. {note}")


def _off(
    rows: tuple[Row, ...], config: EngineConfig, rails: tuple[GuardRail, ...]
) -> Iterator[tuple[str, str | None, Any]]:
    """Comments on the guard rails, the mapping of each field that one would change with its flag and value."""
    if rails:
        yield comment("Guard rails: not measured, hence not switched on."), None, None
    for rail in rails:
        yield comment(rail.why), None, None
        changed = config.model_copy(update=dict(rail.changes))
        for row in (row for row in rows if row.knob in rail.changes):
            mapped = row.rule(changed)
            yield _about(row, mapped.fit, mapped.note), row.flag, mapped.value


def _rails(rows: tuple[Row, ...], config: EngineConfig, rails: tuple[GuardRail, ...]) -> Iterator[str]:
    """Guard rails as comments; one that the engine has, as a line that takes effect without its #."""
    if rails:
        yield "\n"
    for line, flag, value in _off(rows, config, rails):
        yield line
        if flag is not None and value is not None:
            yield f"#{entry(flag, value)}"


def _left_to_helm(target: str, config: EngineConfig, rails: tuple[GuardRail, ...]) -> Iterator[str]:
    """Guard rails for extraArgs: PyYAML writes no comment into a list."""
    if target == "helm-values":
        for _, flag, value in _off(VLLM, config, rails):
            if flag is not None and value is not None:
                yield f"Guard rail, see vllm.yaml; to switch it on, add to extraArgs: --{flag} and '{value}'."


def _rails_of_ours(rails: tuple[GuardRail, ...]) -> Iterator[str]:
    """In the header, for what follows it is what was measured."""
    if rails:
        yield comment("Guard rails: not measured, hence not switched on. To have one, change its settings below.")
    for rail in rails:
        settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in rail.changes.items())
        yield comment(f"{settings}. {rail.why}")


def _fixed(fixed: Fixed) -> Iterator[str]:
    for flag, (value, note) in fixed.items():
        yield "\n" + comment(f"{flag}: {note}")
        if value is not None:
            yield entry(flag, value)


def _nested(rows: tuple[Row, ...], config: EngineConfig, rails: tuple[GuardRail, ...]) -> Iterator[str]:
    """Comments first, for a nested mapping cannot be broken up by them; then the YAML, a guard rail's line at the end
    of the mapping that it belongs into."""
    tree: dict[str, Any] = {"enable_chunked_prefill": True}
    off: dict[str, str] = {}
    for row in rows:
        mapped = row.rule(config)
        yield _about(row, mapped.fit, mapped.note).replace("-> --", "-> ")
        if mapped.value is not None:
            assert row.flag is not None, row.knob
            branch, _, last = row.flag.rpartition(".")
            (tree.setdefault(branch, {}) if branch else tree)[last] = mapped.value
    for line, flag, value in _off(rows, config, rails):
        yield line.replace("-> --", "-> ")
        if flag is not None and value is not None:
            branch, _, last = flag.rpartition(".")
            off[branch] = off.get(branch, "") + f"  #{entry(last, value)}"
    yield "\n"
    for key, value in tree.items():
        yield entry(key, value) + off.get(key, "")


def _script(config: EngineConfig, model_name: str, rails: tuple[GuardRail, ...]) -> Iterator[str]:
    """Comments, then one command whose every word is quoted."""
    yield comment("Run: sh llamacpp.sh --host 127.0.0.1 --port 8000")
    yield _caution("llama.cpp")
    words = ["--alias", model_name]
    for row in LLAMACPP:
        mapped = row.rule(config)
        yield _about(row, mapped.fit, mapped.note)
        if mapped.value is not None:
            words += [f"--{row.flag}"] if mapped.value is True else [f"--{row.flag}", str(mapped.value)]
    for flag, (value, note) in llamacpp_fixed(config).items():
        yield comment(f"{flag}: {note}")
        words += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    yield from (line for line, _, _ in _off(LLAMACPP, config, rails))
    quoted = " ".join(shlex.quote(word) for word in words)
    yield f'\nexec "${{LLAMA_SERVER:-llama-server}}" {quoted} "$@"\n'
