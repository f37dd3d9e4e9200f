"""``whoami-router check``: being written."""

import click


@click.command("check")
def command() -> None:
    """Being written."""
