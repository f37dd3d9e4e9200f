"""What options have in common: their texts turned into values, and errors in one line."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from whoami_router.settings import Settings, parse_listen, parse_synapse_url

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULTS = Settings()


def count(text: str) -> int:
    """Return a whole number of 1 or more; raises ValueError, worded for the administrator."""
    if not re.fullmatch("0*[1-9][0-9]{0,11}", text):
        raise ValueError("needs a whole number of 1 or more, for example 100000")
    return int(text)


def whole_seconds(text: str) -> int:
    """Return a whole number of 0 or more; raises ValueError, worded for the administrator."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError("needs a whole number of seconds, 0 or more, for example 60")
    return int(text)


def seconds(text: str) -> float:
    """Return a number above 0; raises ValueError, worded for the administrator."""
    number = _number(text)
    if not number > 0:
        raise ValueError("needs a number of seconds above 0, for example 2.5")
    return number


def seconds_or_none(text: str) -> float:
    """Return a number of 0 or more; raises ValueError, worded for the administrator."""
    number = _number(text)
    if not number >= 0:
        raise ValueError("needs a number of seconds, 0 or more, for example 30")
    return number


def _number(text: str) -> float:
    """Return the number, or one that no comparison admits."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def parsed_by(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return ``parse``, its ValueError turned into click's, with the value in front.

    But not with what stands before the @ of a URL: it may be a password.
    """

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as exc:
            raise click.BadParameter(f"{_without_password(text)!r} {exc}.") from exc

    return convert


def _without_password(text: str) -> str:
    before, at, host = text.rpartition("@")
    if ":" not in before or text.startswith("@"):  # a user ID begins with one
        return text
    scheme = re.match("[A-Za-z][A-Za-z0-9+.-]*://", before)
    return f"{scheme[0] if scheme else ''}...{at}{host}"


def option(
    name: str, metavar: str | None, type_: click.Choice[str] | Callable[[str], object], help_: str
) -> Callable[[F], F]:
    """Return an option with the environment variable and default that go with its name."""
    field = name.replace("-", "_")
    default = getattr(DEFAULTS, field)
    return click.option(
        f"--{name}",
        metavar=metavar,
        type=type_ if isinstance(type_, click.Choice) else parsed_by(type_),
        default=None if default is None else str(default),
        show_default=default is not None,
        envvar=f"WHOAMI_ROUTER_{field.upper()}",
        show_envvar=True,
        help=help_,
    )


def nginx_conf(help_: str) -> Callable[[F], F]:
    """Return the option that names nginx's configuration; what for differs by command."""
    return click.option(
        "--nginx-conf",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="WHOAMI_ROUTER_NGINX_CONF",
        show_envvar=True,
        help=help_,
    )


synapse_url = click.option(
    "--synapse-url",
    "synapse_urls",
    metavar="URL",
    multiple=True,
    type=parsed_by(parse_synapse_url),
    default=DEFAULTS.synapse_urls,
    show_default=True,
    envvar="WHOAMI_ROUTER_SYNAPSE_URL",
    show_envvar=True,
    help="Where to ask whoami: http://host:port or unix:/path. Give it several times (in the "
    "environment: separated by spaces) and they are tried in turn.",
)
listen = option(
    "listen",
    "ADDRESS",
    parse_listen,
    "Where nginx finds the service: host:port, unix:/path or fd:3 (an inherited socket).",
)
admin_listen = option(
    "admin-listen",
    "ADDRESS",
    parse_listen,
    "Where /health, /ready, /metrics and the status page are, if not where nginx asks.",
)
whoami_timeout = option(
    "whoami-timeout", "SECONDS", seconds, "How long Synapse may take to answer."
)
