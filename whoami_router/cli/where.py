"""``whoami-router where``: being written."""

import click


@click.command("where")
def command() -> None:
    """Being written."""
