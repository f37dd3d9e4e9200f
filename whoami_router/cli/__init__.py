"""The command line: a module for each command, each loaded when it is used."""

import sys
from importlib import import_module
from typing import NoReturn

import click

from whoami_router import __version__

_MODULES = {
    "check": "check",
    "completion": "completion",
    "nginx-files": "nginx_files",
    "serve": "serve",
    "where": "where",
}


class _Commands(click.Group):
    """Commands that are imported when they are asked for.

    A health check runs every few seconds, and what ``serve`` is built of takes half a second to
    load.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names of all commands."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of this name, None if there is none."""
        if cmd_name not in _MODULES:
            return None
        loaded: click.Command = import_module(f"{__name__}.{_MODULES[cmd_name]}").command
        return loaded


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="whoami-router")
def command() -> None:
    """Tells a reverse proxy which Matrix user a request belongs to.

    nginx asks by auth_request, the answer is the header X-User-Identifier, and nginx hashes it
    so that all requests of one user reach the same Synapse worker.
    """


def main() -> NoReturn:
    """Run the command line; a mistake in it ends the program with one line."""
    try:
        sys.exit(command.main(prog_name="whoami-router", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        # click's own way of showing it takes three lines.
        click.echo(f"whoami-router: {' '.join(exc.format_message().split())}", err=True)
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(130)
