"""The command line: parse, call, print. Imports wait until a command runs, so that --help answers at once.

Exit statuses: EXIT_STATUSES in errors.py; docs/cli.md is generated from the commands' help.
"""

from __future__ import annotations

from tuner.cli.interrupt import leaving_at_once

with leaving_at_once():
    from tuner.cli import (
        init,
        machine,
        measure,
        quality,
        resume,
        studies,
        study,
        trace,
        trace_synth,
        trace_tools,
        verify,
        whatif,
    )
    from tuner.cli.errors import App, ErrorGroup

app = App(
    cls=ErrorGroup,
    name="tune",
    help="Find the best configuration of an LLM server under recorded traffic.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing what draws boxes around the help took half of its time
)
app.command()(init.init)
app.command()(study.run)
app.command()(resume.resume)
app.command()(studies.status)
app.command("recommend")(study.recommend_)
app.command()(whatif.whatif)
app.command()(verify.verify)
app.command()(study.report)
app.command()(study.export)
app.command()(trace.record)
for tool in (trace_tools.inspect, trace_tools.split, trace_tools.scale, trace_synth.synth, trace_tools.anonymize):
    trace.app.command()(tool)
app.add_typer(trace.app, name="trace")
app.command()(measure.replay)
app.command()(measure.capacity)
app.command()(measure.fairness)
app.command("quality")(quality.quality)
app.add_typer(studies.app, name="studies")
app.add_typer(machine.space_app, name="space")
app.command()(machine.serve)
app.command()(machine.doctor)

if __name__ == "__main__":
    app()
