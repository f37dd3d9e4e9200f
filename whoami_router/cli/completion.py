"""``whoami-router completion``: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete commands, options and their values.

    For bash: whoami-router completion bash > /etc/bash_completion.d/whoami-router
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise click.ClickException(f"click knows no completion for {shell}.")
    root = ctx.find_root()
    script = complete(root.command, {}, "whoami-router", "_WHOAMI_ROUTER_COMPLETE")
    click.echo(script.source())
