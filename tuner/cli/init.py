"""`tune init`: a study file to begin with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.output_file import check_output


def init(
    out: Annotated[Path, typer.Argument(help="The study file to write; it must not exist.")] = Path("study.yaml"),
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Recorded traffic (tune record, tune trace import).")] = None,
    preset: Annotated[str | None, typer.Option(help="chat, rag, code or batch.")] = None,
    draft_model: Annotated[Path | None, typer.Option(help="Checkpoint of a draft model.")] = None,
    probes: Annotated[Path | None, typer.Option(help="Quality probes of your own (JSONL).")] = None,
    name: Annotated[str | None, typer.Option(help="Of the study; default the model's.")] = None,
    trials: Annotated[int, typer.Option(help="Configurations to measure.", min=1)] = 24,
) -> None:
    """Write a commented study file from a model, a trace and a preset; asks for what is not given.

    Example: tune init study.yaml --model models/llama --trace trace.jsonl --preset chat
    """
    import yaml

    from tuner.plan import make_plan
    from tuner.spec import parse_spec
    from tuner.study_file import Inputs, check_model, check_preset, study_file, study_name
    from tuner.traffic.trace_file import load_trace

    if out.exists():
        raise ValueError(f"{out}: exists; choose another file")
    check_output("OUT", out)
    model_ = model or _path(_asked("--model", "Checkpoint directory", lambda answer: check_model(_path(answer))))
    trace_ = trace or _path(_asked("--trace", "Trace file", lambda answer: load_trace(_path(answer))))
    preset_ = preset or _asked("--preset", "Preset (chat, rag, code, batch)", check_preset)
    inputs = Inputs(
        name or study_name(model_.absolute().name),
        model_,
        trace_,
        load_trace(trace_),
        preset_,
        draft_model,
        probes,
        trials,
    )
    text = study_file(inputs, out.parent)
    make_plan(parse_spec(yaml.safe_load(text), source=str(out), base=out.parent))  # what it writes must run
    out.write_text(text, "utf-8")
    typer.echo(f"wrote {out}; next: tune run {out}")


def _asked(option: str, question: str, check: Callable[[str], object]) -> str:
    """An answer from the terminal, asked for until `check` takes it. Raises ValueError where there is none to ask."""
    if not sys.stdin.isatty():
        raise ValueError(f"{option}: not given, and there is no terminal to ask; give it")

    def checked(answer: str) -> str:
        try:
            check(answer)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return answer

    return str(typer.prompt(question, value_proc=checked))


def _path(answer: str) -> Path:
    """No shell has seen the answer to a question."""
    return Path(answer.strip()).expanduser()
