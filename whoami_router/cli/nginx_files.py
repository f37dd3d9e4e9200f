"""``whoami-router nginx-files``: write the nginx files that belong to this version."""

import sys
from pathlib import Path

import click

from whoami_router import nginx_files


@click.command("nginx-files")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--force",
    is_flag=True,
    help="Replace files that differ; each is kept beside the new one as NAME.bak.",
)
def command(directory: Path, *, force: bool) -> None:
    """Write the nginx files of this version to DIR.

    Files that are there and say the same are left alone. If one differs nothing is written.
    """
    written = 0
    try:
        for file in nginx_files.write(directory, force=force):
            kept = f" (the old one is {file.kept.name})" if file.kept is not None else ""
            click.echo(f"{file.path}{kept}")
            written += 1
    except nginx_files.CannotWrite as exc:
        for reason in exc.reasons:
            click.echo(f"whoami-router: {reason}.", err=True)
        sys.exit(1)
    if not written:
        click.echo(f"{directory} has them all.")
        return
    click.echo(
        f"Next: put your addresses into {directory / 'conf.d/upstreams.conf'}, "
        f"then nginx -t -c {(directory / 'nginx.conf').absolute()}"
    )
