"""Errors of the command line: what a user can act on becomes one line and an exit status."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class ErrorGroup(TyperGroup):
    """Turns the errors that users can act on into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from tuner.errors import ServingError

        try:
            return super().invoke(ctx)
        except ValueError as error:
            _fail(str(error), 2)
        except ServingError as error:
            _fail(f"{error.reason}: {error}", 4)
        except OSError as error:
            _fail(f"{error.filename or ''}: {error.strerror}", 2)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _fail(message: str, status: int) -> None:
    typer.echo(f"tune: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)
