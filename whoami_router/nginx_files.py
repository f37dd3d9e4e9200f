"""Writes the nginx files that belong to this version of whoami-router."""

import filecmp
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parent

# In a wheel they are in the package; in a checkout, and so in an editable installation, beside it.
_PLACES = (_PACKAGE / "nginx", _PACKAGE.parent / "nginx")


class CannotWrite(Exception):  # noqa: N818  (the name says the consequence)
    """The files cannot be written; each of ``reasons`` is a line for the administrator."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written, and where the one that was there before is now, if any."""

    path: Path
    kept: Path | None


def shipped() -> Path:
    """Return the directory with the files; raises CannotWrite if this installation has none."""
    for place in _PLACES:
        if (place / "nginx.conf").is_file():
            return place
    raise CannotWrite(f"{_PLACES[0]} is missing; install whoami-router again")


def write(directory: Path, *, force: bool = False) -> Iterator[Written]:
    """Write what is not in ``directory`` yet, and yield each file once it is there.

    A file that is there and says the same is left alone. If one says something else nothing is
    written, or with ``force`` that one is kept beside the new one as NAME.bak. Raises CannotWrite.
    """
    for source, target in _to_write(shipped(), directory, force=force):
        try:
            _make_directory(target.parent)
            written = _replace(target, source.read_bytes())
        except OSError as exc:
            raise CannotWrite(f"cannot write {target}: {exc.strerror}") from exc
        yield written


def _to_write(source: Path, directory: Path, *, force: bool) -> list[tuple[Path, Path]]:
    """Return from where to where files have to be copied; raises CannotWrite."""
    wanted, reasons = [], []
    for file in sorted(source.rglob("*")):
        if file.is_dir():
            continue
        target = directory / file.relative_to(source)
        try:
            if _says_the_same(file, target):
                continue
            reason = _hindrance(target, force=force)
        except OSError as exc:  # of all files at once, more likely than not
            raise CannotWrite(f"cannot write {target}: {exc.strerror}") from exc
        if reason is None:
            wanted.append((file, target))
        else:
            reasons.append(reason)
    if reasons:
        raise CannotWrite(*reasons)
    return wanted


def _says_the_same(file: Path, target: Path) -> bool:
    return target.is_file() and filecmp.cmp(file, target, shallow=False)


def _hindrance(target: Path, *, force: bool) -> str | None:
    """Return why the file must not be written, None if it may; raises OSError."""
    if not _is_there(target):
        return None
    if target.is_dir():
        return f"{target} is a directory; choose another place"
    kept = _kept(target)
    if not force:
        return f"{target} differs; --force replaces it and keeps it as {kept.name}"
    if _is_there(kept):
        return f"{kept} is there already; move it away"
    return None


def _is_there(path: Path) -> bool:
    """Return whether something has this name, be it a link to nowhere; raises OSError."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _kept(path: Path) -> Path:
    # nginx.conf includes conf.d/*.conf, so of what ends in .bak nginx reads nothing.
    return path.with_name(f"{path.name}.bak")


def _make_directory(directory: Path) -> None:
    """Make the directory and those above it; whatever the umask, nginx's user may enter."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir()
    directory.chmod(0o755)


def _replace(target: Path, text: bytes) -> Written:
    """Write a file as a whole or not at all; raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        new.chmod(0o644)  # mkstemp's is for the owner only
        kept = _kept(target) if _is_there(target) else None
        if kept is not None:
            target.rename(kept)
        new.rename(target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    return Written(target, kept)
