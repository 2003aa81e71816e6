"""Errors of the command line: what a user can act on becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer._click.exceptions import NoArgsIsHelpError, UsageError  # typer's own copy of click: no public name
from typer.core import TyperGroup

from tuner.cli.interrupt import INTERRUPTED, interrupted, leave, leave_at_once, raising, watch
from tuner.cli.usage import no_such_command, usage_problem

REFUSED, MISTAKE, NOTHING_FEASIBLE, ENGINE_FAILED, UNREAD = 1, 2, 3, 4, 141
STDOUT = 1
EXIT_STATUSES = {
    0: "Done. `tune run` ends with it too when nothing is feasible: it wrote the report that says so.",
    REFUSED: "The answer is no: `tune verify`, the recommendation does not hold; `tune doctor`, a study cannot run "
    "here; or you declined what was asked.",
    MISTAKE: "Your input needs a change; one line on standard error says which.",
    NOTHING_FEASIBLE: "Nothing can be deployed: `tune recommend`, `export`, `whatif`, `verify`.",
    ENGINE_FAILED: "The engine failed, or could not be measured soundly, through no fault of a trial's configuration.",
    INTERRUPTED: "Ctrl-C or SIGTERM. What was measured is kept, the front so far is written, the last line says how "
    "to go on.",
    UNREAD: "What was printed had no reader any more, as in `tune … | head`.",
}
"""What each exit status of `tune` means."""


class App(typer.Typer):
    """Leaves at once when it is interrupted before a command runs, or after that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leave_at_once()
        watch()
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as ended:
            if ended.code == INTERRUPTED:
                leave()
            raise


class ErrorGroup(TyperGroup):
    """Turns the errors that users can act on into one line and an exit status."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except NoArgsIsHelpError:
            raise
        except UsageError as error:
            _fail(usage_problem(error), MISTAKE)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            ctx.fail(no_such_command(self, args[0]))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        from tuner.errors import ServingError

        try:
            with raising():
                found = super().invoke(ctx)
                sys.stdout.flush()
                return found
        except NoArgsIsHelpError:
            raise
        except UsageError as error:
            _fail(usage_problem(error, ctx), MISTAKE)
        except ValueError as error:
            _fail(str(error), MISTAKE)
        except ServingError as error:
            _fail(f"{error.reason}: {error}", ENGINE_FAILED)
        except BrokenPipeError:
            # Python would complain of what it still holds for the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
            raise typer.Exit(UNREAD) from None
        except OSError as error:
            _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part), MISTAKE)
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED)
        except (ImportError, typer.Abort):  # what KeyboardInterrupt became in a module written in C, or at a question
            if not interrupted():
                raise
            _fail("interrupted", INTERRUPTED)


def _fail(message: str, status: int) -> NoReturn:
    with suppress(BrokenPipeError):  # nobody reads it: the status tells
        typer.echo(f"tune: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)
