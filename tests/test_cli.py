"""The command line as a shell sees it."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_job import fails
from vidcsl import cli
from vidcsl.cli import COMMANDS, main
from vidcsl.commands.arguments import add_config
from vidcsl.errors import PassingError, UserError

ROOT = Path(__file__).parents[1]


def test_a_reader_that_leaves_early_ends_a_command_without_a_traceback() -> None:
    """As `vidcsl show options | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "vidcsl.cli", "show", "models"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writing)
    assert ended.returncode == 141
    assert ended.stderr == b""


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[argparse.Namespace], None]], None]:
    """Adds a command `probe` with a config and `--resume`, which runs the given function."""

    def add(run: Callable[[argparse.Namespace], None]) -> None:
        def probe(parser: argparse.ArgumentParser) -> None:
            add_config(parser, required=False)
            parser.add_argument("--resume", action="store_true")
            parser.set_defaults(run=run)

        module = ModuleType("tests.probe")
        module.__dict__["probe"] = probe
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "probe", (module.__name__, "a command of this test"))

    return add


def test_a_warning_is_one_line_without_a_place_in_the_source(command) -> None:
    written: list[str] = []
    warned = ("a list\nlacks a class", UserWarning, "lists.py", 7)
    command(lambda _: written.append(warnings.formatwarning(*warned)))
    assert cli.main(["probe"]) == 0
    assert written == ["vidcsl: warning: a list lacks a class\n"]


def test_options_of_the_config_may_stand_before_and_after_those_of_the_command(command) -> None:
    seen: list[argparse.Namespace] = []
    command(seen.append)
    assert cli.main(["probe", "--cfg", "demo", "SEED", "1", "--resume", "TRAIN.EPOCHS", "2"]) == 0
    assert seen[0].overrides == ["SEED", "1", "TRAIN.EPOCHS", "2"]
    assert seen[0].resume


@pytest.mark.parametrize(
    "words", [["--help"], ["prepare", "--help"], ["report", "--help"], ["doctor", "--help"]]
)
def test_help_imports_nothing_that_is_slow(words: list[str]) -> None:
    code = (
        "import sys; from vidcsl.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'torchvision', 'timm', 'sklearn', 'scipy', 'matplotlib'}\n"
        "print('slow:', sorted(slow & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.splitlines()[-1] == "slow: []", ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert COMMANDS[name][1].split()[0] in capsys.readouterr().out


@pytest.mark.parametrize("words", [["train", "--cfg", "demo", "--resum3"], ["doctor", "--x", "y"]])
def test_other_words_are_not_taken_for_options(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_place_that_cannot_be_written_is_one_line(
    data: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    video = next(data.rglob("*.mp4"))
    words = ["gallery", str(video), "--out", str(tmp_path / place), "--frames", "2"]
    assert place.partition("/")[0] in fails(capsys, *words, "--names", "contrast")


@pytest.mark.parametrize(
    ("error", "restarts", "ended"),
    [
        (UserError("so it is"), 3, True),
        (OSError(errno.ENOSPC, "No space left on device"), 3, True),
        (UserError("so it is"), 1, False),
        (PassingError("so it is"), 3, False),
    ],
    ids=["it would come again", "the disk is full", "none is left", "it may pass"],
)
def test_torchrun_is_ended_where_it_would_start_an_error_anew(
    command, monkeypatch: pytest.MonkeyPatch, error: Exception, restarts: int, ended: bool
) -> None:
    def fail(_args: object) -> None:
        raise error

    sent: list[tuple[int, int]] = []
    command(fail)
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["probe"]) == 2
    assert sent == ([(os.getppid(), signal.SIGTERM)] if ended else [])


@pytest.fixture
def heeded():
    """Ctrl-C is heeded, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_is_one_line_exit_code_130_and_how_to_go_on(command, capsys) -> None:
    def interrupted(_args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    command(interrupted)
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "\nvidcsl: stopped\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heeded")
def test_an_interrupt_that_a_library_turns_into_an_error_is_one(command, capsys) -> None:
    def interrupted(_args: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("partially initialised") from None

    command(interrupted)
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "\nvidcsl: stopped\n"


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys) -> None:
    def interrupted(_name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert main(["evaluate", "--checkpoint", "run"]) == 130
    assert capsys.readouterr().err == (
        "\nvidcsl: stopped; run the same command again to continue\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate"),
    ],
    ids=["Python", "CPU", "GPU"],
)
def test_too_little_memory_is_one_line_that_names_the_options(command, capsys, error) -> None:
    def run(_args: object) -> None:
        raise error

    command(run)
    said = fails(capsys, "probe")
    assert all(key in said for key in ("TRAIN.CHUNK", "TRAIN.BATCH", "MODEL.WIDTH"))


def test_other_faults_keep_their_traceback(command) -> None:
    def run(_args: object) -> None:
        raise RuntimeError("a fault of ours")

    command(run)
    with pytest.raises(RuntimeError, match="of ours"):
        main(["probe"])


@pytest.mark.parametrize(
    ("redirection", "environment"),
    [(">&-", {}), (">&- 2>&-", {}), ("", {"PYTHONIOENCODING": "ascii"})],
    ids=["closed", "both closed", "ASCII"],
)
def test_output_that_cannot_be_written_does_not_stop_a_command(
    tmp_path, redirection: str, environment: dict[str, str]
) -> None:
    videos = tmp_path / "vidéos \udce9"
    (videos / "a").mkdir(parents=True)
    for k in range(4):
        (videos / f"a/{k}.mp4").touch()
    line = f'"$0" -m vidcsl.cli prepare folder --root "$1" --out "$2" {redirection}'
    ended = subprocess.run(
        ["sh", "-c", line, sys.executable, str(videos), str(tmp_path / "lists")],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "lists/train.csv").exists()


def test_ctrl_c_while_a_library_is_imported_ends_at_once(tmp_path) -> None:
    """An exception inside of an import may abort the process, with a long trace."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(99)\n"
    )
    code = (
        "import signal, sys; from vidcsl import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.COMMANDS['evaluate'] = ('slow', 'x')\n"
        "raise SystemExit(cli.main(['evaluate', '--checkpoint', 'run']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert ended.returncode == 130
    assert ended.stderr == "\nvidcsl: stopped; run the same command again to continue\n"
