"""What a shell completes after `eval "$(batchd --print-completion bash)"`, asked of a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import completion
from tests.daemons import REPOSITORY

# Sets what bash sets at TAB, calls what the script registered, and prints what it offers.
ASK = r"""
eval "$1"; shift
function=$(complete -p batchd | sed -E 's/.* -F (\S+) .*/\1/')
COMP_WORDS=(batchd "$@"); COMP_CWORD=$#; COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
"$function" batchd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


def printed(shell: str) -> str:
    command = [sys.executable, "-m", "daemon.main", "--print-completion", shell]
    # The path as it is here: the five packages may be installed from elsewhere.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout


@pytest.fixture(scope="module")
def script() -> str:
    return printed("bash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user is: a batch file, a folder, a spool, and in it names that a shell would run."""
    (tmp_path / "file.jsonl").touch()
    (tmp_path / "models").mkdir()
    for name in ("jan", "team-a~feb", "jan$(touch ran)", "jan`touch ran`"):
        (tmp_path / "a spool/outbox" / name).mkdir(parents=True)
    return tmp_path


def offered(script: str, folder: Path, *words: str) -> list[str]:
    """What TAB offers at the end of these words."""
    environment = {**os.environ, "BATCHD_SPOOL__ROOT": str(folder / "a spool")}
    command = ["bash", "--norc", "-c", ASK, "bash", script, *words]
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], ["status"]),
        (["re"], ["retry", "report", "resume"]),
        (["run", "--c"], ["--config", "--check"]),
        (["submit", "file.jsonl", "--pool", ""], ["auto", "spot", "dedicated"]),
        (["status", "--state", "ca"], ["cancelling", "cancelled"]),
        (["validate", "f"], ["file.jsonl"]),
        (["run", "--config", "f"], ["file.jsonl"]),
        (["verify", "jan", "--input", "f"], ["file.jsonl"]),
        (["doctor", "m"], ["models"]),
        (["validate", "file.jsonl", "--model", ""], ["models"]),
        (["cancel", "t"], ["team-a~feb"]),
        (["watch", "--timeout", ""], []),
    ],
)
def test_tab_offers_what_fits(script: str, folder: Path, words: list[str], expected: list[str]) -> None:
    found = offered(script, folder, *words)
    assert [each for each in found if each not in ("a", "spool")] == expected  # `a spool` is a folder, too


def test_every_command_is_offered(script: str, folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "daemon.main", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    commands = {
        line.split()[0] for line in ran.stdout.splitlines() if line.startswith("    ") and line[4] != " "
    }
    assert len(commands) > 10
    assert set(offered(script, folder, "")) == commands


def test_completing_runs_nothing_that_a_name_says(script: str, folder: Path) -> None:
    """bash expands the words that it is to choose from: from a folder's name, TAB would run a command."""
    assert "jan" in offered(script, folder, "cancel", "j")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_one_that_its_shell_reads(shell: str) -> None:
    text = printed(shell)
    assert "resume" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, timeout=30, check=True)


def test_no_other_command_loads_what_makes_it() -> None:
    code = "import daemon.main, sys; daemon.main._parser(); sys.exit('shtab' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60, check=True)
