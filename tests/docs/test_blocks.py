"""Every command in the documents is run by a test, or says why not."""

import ast
import re
import shlex
from itertools import pairwise

import click
import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, SHELLS, blocks, inline, not_seen
from whoami_router.cli import command

COMMANDS = [block for path in DOCUMENTS for block in blocks(path) if block.language in SHELLS]


def problem(block):
    """Return what is wrong with what is said of a block; None if nothing is."""
    if block.lacking is not None:
        return None
    if block.run_by is None:
        return "neither run by a test, nor marked as not run here"
    file, name = block.run_by
    if not (ROOT / file).exists():
        return f"there is no {file}"
    tests = {
        each.name: [argument.arg for argument in each.args.args]
        for each in ast.parse((ROOT / file).read_text()).body
        if isinstance(each, ast.FunctionDef)
    }
    if name not in tests:
        return f"{file} has no {name}"
    # These fixtures give a test the blocks that name it, and fail unless all are taken.
    if not {"marked", "followed"} & {*tests[name]}:
        return f"{name} takes no block"
    return None


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.place)
def test_command_is_run_or_says_what_the_test_machine_lacks(block):
    assert problem(block) is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_fence_is_part_of_a_block(path):
    """A fence that is not understood would hide a command."""
    fences = [line for line in path.read_text().splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(blocks(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_in_blocks_that_are_known_as_such(path):
    others = {"", "diff", "nginx", "text", "yaml"}
    assert {block.language for block in blocks(path)} <= {*SHELLS, *others}
    prompt = re.compile(r"^\$ ", re.MULTILINE)
    typed = [
        each.place for each in blocks(path) if each.language in others and prompt.search(each.text)
    ]
    assert typed == []


def typed_in(path):
    """Return each simple command in a document, in blocks (run or not) and between backticks."""
    texts = inline(path)
    for block in blocks(path):
        if block.language in SHELLS:
            texts += block.commands.replace("\\\n", " ").splitlines()
    for text in texts:
        # The rest of a line behind these is another command.
        yield from (each.strip() for each in re.split(r"&&|\|\||[|;]", text))


def unknown(typed):
    """Return what whoami-router would not take of a command; empty if nothing, or another's."""
    if not re.match(r"whoami-router [a-z]", typed):
        return []
    _, name, *words = shlex.split(typed, comments=True)
    given = command.get_command(click.Context(command), name)
    if given is None:
        return [name]
    options = {text: each for each in given.params for text in each.opts} | {"--help": None}
    problems = []
    for word, value in pairwise([*words, None]):
        if not word.startswith("-"):
            continue
        if word not in options:
            problems.append(word)
        elif value and isinstance(kind := getattr(options[word], "type", None), click.Choice):
            problems += [value] * (value not in kind.choices)
    return problems


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_between_backticks_have_options_that_exist(path):
    assert {each: unknown(each) for each in typed_in(path) if unknown(each)} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_units_that_are_named_exist(path):
    theirs = {"nginx", "mtail", "prometheus"}
    ours = {each.name for each in (ROOT / "deploy/systemd").iterdir()}
    for typed in typed_in(path):
        if not re.match(r"(systemctl|journalctl) ", typed):
            continue
        for unit in re.findall(r"whoami-router\S*", typed):
            stem, _, suffix = unit.strip("'").partition("@")
            _, _, kind = suffix.rpartition(".") if "." in suffix else ("", "", "service")
            assert f"{stem}@.{kind}" in ours, typed
        if found := re.match(r"systemctl (?:start|stop|restart|reload|status) (\w+)$", typed):
            assert found[1] in theirs, typed


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        ("whoami-router check --only nginx --nginx-conf nginx.conf", []),
        ("whoami-router check --only weather", ["weather"]),
        ("whoami-router check --sieve", ["--sieve"]),
        ("whoami-router chek", ["chek"]),
        ("whoami-router where --distribution", []),
        ("whoami-router --version", []),
        ("curl --sieve", []),
    ],
)
def test_option_that_does_not_exist_is_found(typed, problems):
    assert unknown(typed) == problems


DOCUMENT = """\
Text, and `four
--or more`.

<!-- not run here: needs a cluster -->
```sh
one
```

It says:

```text
1
2...
```

<!-- tests/docs/test_blocks.py::test_x runs this block until it says so -->
```console
$ two
II
```

```sh
three
```

First.

Second.

```text
3
```
"""


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.md"
    path.write_text(DOCUMENT)
    return path


@pytest.fixture
def examples(document):
    return [block for block in blocks(document) if block.language in SHELLS]


def test_block_knows_what_is_said_of_it(examples):
    assert [block.lacking for block in examples] == ["needs a cluster", None, None]
    test = ("tests/docs/test_blocks.py", "test_x")
    assert [block.run_by for block in examples] == [None, test, None]
    assert [block.repeated for block in examples] == [False, True, False]


def test_block_knows_its_commands_and_what_they_say(examples):
    assert [block.commands for block in examples] == ["one\n", "two\n", "three\n"]
    assert [block.seen for block in examples] == [["1", "2..."], ["II"], []]


def test_commands_in_prose_and_in_blocks_are_found(document):
    assert inline(document) == ["four --or more"]
    assert [*typed_in(document)] == ["four --or more", "one", "two", "three"]


def test_third_kind_of_block_is_found(examples):
    assert [problem(block) for block in examples] == [
        None,
        "tests/docs/test_blocks.py has no test_x",
        "neither run by a test, nor marked as not run here",
    ]


@pytest.mark.parametrize(
    ("expected", "output", "missing"),
    [
        (["a", "b"], "a\nb\n", []),
        (["a", "b"], "a\nbetween\n  b\n", []),
        (["b", "a"], "a\nb\n", ["a"]),
        (["a ... z"], "a to z\n", []),
        (["a...", "..."], "abc\n", []),
        (["a"], "ab\n", ["a"]),
        (["(.*)"], "x\n", ["(.*)"]),
        ([], "x\n", []),
    ],
)
def test_what_is_seen_is_compared_line_by_line(expected, output, missing):
    assert not_seen(expected, output) == missing
