"""Every command in the documents is run by a test, or says why not."""

import ast
import re

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, SHELLS, blocks, not_seen

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


DOCUMENT = """\
Text.

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
def examples(tmp_path):
    path = tmp_path / "document.md"
    path.write_text(DOCUMENT)
    return [block for block in blocks(path) if block.language in SHELLS]


def test_block_knows_what_is_said_of_it(examples):
    assert [block.lacking for block in examples] == ["needs a cluster", None, None]
    test = ("tests/docs/test_blocks.py", "test_x")
    assert [block.run_by for block in examples] == [None, test, None]
    assert [block.repeated for block in examples] == [False, True, False]


def test_block_knows_its_commands_and_what_they_say(examples):
    assert [block.commands for block in examples] == ["one\n", "two\n", "three\n"]
    assert [block.seen for block in examples] == [["1", "2..."], ["II"], []]


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
