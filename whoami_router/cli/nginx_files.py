"""``whoami-router nginx-files``: being written."""

import click


@click.command("nginx-files")
def command() -> None:
    """Being written."""
