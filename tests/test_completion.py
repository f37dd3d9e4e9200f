"""What a real shell completes."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

COMPLETE = """
PATH="{bin}:$PATH"
source <(whoami-router completion bash)
COMP_WORDS=({words} "{last}")
COMP_CWORD={number}
_whoami_router_completion whoami-router "{last}"
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p whoami-router
"""


def completed(*words):
    script = COMPLETE.format(
        bin=BIN,
        words=" ".join(("whoami-router", *words[:-1])),
        last=words[-1],
        number=len(words),
    )
    ran = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    *found, registered = ran.stdout.split("\n")[:-1]
    assert registered.startswith("complete ")
    return set(found) - {""}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["s"], {"serve"}),
        (["ch"], {"check"}),
        (["serve", "--log-"], {"--log-level", "--log-format"}),
        (["serve", "--log-format", ""], {"console", "json"}),
        (["serve", "--native-tokens", "d"], {"decode"}),
        (["where", "--nginx-c"], {"--nginx-conf"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_options_and_values(words, expected):
    assert completed(*words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell):
    ran = subprocess.run(
        [BIN / "whoami-router", "completion", shell], capture_output=True, text=True, check=True
    )
    assert "_WHOAMI_ROUTER_COMPLETE" in ran.stdout
