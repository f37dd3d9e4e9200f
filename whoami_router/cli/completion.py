"""``whoami-router completion``: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete commands, options and their values.

    \b
    bash, in ~/.bashrc:  source <(whoami-router completion bash)
    zsh, in ~/.zshrc:    source <(whoami-router completion zsh)
    fish:                whoami-router completion fish | source
    """  # noqa: D301  (click's mark for lines that stay as they are)
    complete = get_completion_class(shell)
    if complete is None:  # which click's types admit, though it is one of those that are offered
        raise click.ClickException(f"click knows no completion for {shell}.")
    root = ctx.find_root()
    script = complete(root.command, {}, "whoami-router", "_WHOAMI_ROUTER_COMPLETE")
    click.echo(script.source())
