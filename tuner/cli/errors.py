"""Errors of the command line: what a user can act on becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

REFUSED, MISTAKE, NOTHING_FEASIBLE, ENGINE_FAILED, INTERRUPTED, UNREAD = 1, 2, 3, 4, 130, 141
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


class ErrorGroup(TyperGroup):
    """Turns the errors that users can act on into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from tuner.errors import ServingError

        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found
        except ValueError as error:
            _fail(str(error), MISTAKE)
        except ServingError as error:
            _fail(f"{error.reason}: {error}", ENGINE_FAILED)
        except BrokenPipeError:
            # Python would complain of what it still holds for the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
            raise typer.Exit(UNREAD) from None
        except OSError as error:
            _fail(f"{error.filename or ''}: {error.strerror}", MISTAKE)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except typer.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C at a question
                raise typer.Exit(INTERRUPTED) from None
            raise


def _fail(message: str, status: int) -> None:
    typer.echo(f"tune: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)
