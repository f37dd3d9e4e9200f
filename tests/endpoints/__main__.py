"""Tells what a new version of Synapse changes for whoever routes requests to its workers.

``make endpoints`` compares the list in synapse.json with what the installed Synapse registers. The
status is 0 if nothing differs.
"""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click

from tests.endpoints.differences import Differences
from tests.stack.synapse import PYTHON

HERE = Path(__file__).parent


@cache  # takes seconds, and stays the same
def installed() -> dict[str, Any]:
    """Return what the installed Synapse registers, as registered.py has it."""
    if not PYTHON.exists():
        raise click.ClickException(
            f"there is no Synapse at {PYTHON}: make endpoints installs one, "
            "SYNAPSE_PYTHON names another"
        )
    asked = subprocess.run([PYTHON, HERE / "registered.py"], stdout=subprocess.PIPE, check=False)
    if asked.returncode:
        raise click.ClickException(
            "this Synapse does not list its paths as registered.py asks it to"
        )
    return dict(json.loads(asked.stdout))


@click.command()
@click.option(
    "--list",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=HERE / "synapse.json",
    help="Another list than the project's own.",
)
@click.pass_context
def main(context: click.Context, path: Path) -> None:
    """List what differs between the endpoints we know and those of the installed Synapse."""
    registered = installed()
    differences = Differences(json.loads(path.read_text()), registered).by_heading()
    for heading, lines in differences.items():
        click.echo(f"{heading}:\n")
        click.echo("".join(f"  {line}\n" for line in lines))
    if differences:
        context.exit(1)
    click.echo(f"Nothing differs from Synapse {registered['version']}.")


if __name__ == "__main__":
    main()
