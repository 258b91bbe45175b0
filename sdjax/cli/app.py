"""The two console scripts, and what becomes of errors and signals in them."""

import io
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from textwrap import shorten
from typing import Any

import typer

from sdjax.cli.help import Command, Group
from sdjax.cli.interrupt import listening
from sdjax.cli.progress import end_bars
from sdjax.cli.safe import safe
from sdjax.errors import SdjaxError

# The commands in the order of `--help`, by group, each with the file in this folder that has it, and its name there.
DRAW, MODELS, MACHINE = "Draw", "Models", "This machine"
COMMANDS = {
    "generate": ("generate:generate", DRAW),
    "img2img": ("generate:img2img", DRAW),
    "inpaint": ("generate:inpaint", DRAW),
    "edit": ("generate:edit", DRAW),
    "variations": ("generate:variations", DRAW),
    "upscale": ("generate:upscale", DRAW),
    "annotate": ("annotate:annotate_picture", DRAW),
    "batch": ("batch:batch", DRAW),
    "compare": ("compare:compare", DRAW),
    "ddpm": ("ddpm:ddpm", DRAW),
    "serve": ("serve:serve", DRAW),
    "ui": ("serve:ui", DRAW),
    "samplers": ("samplers:samplers", DRAW),
    "models": ("listing:models", MODELS),
    "loras": ("listing:loras", MODELS),
    "info": ("info:info", MODELS),
    "convert": ("convert:convert", MODELS),
    "train": ("training:train", MODELS),
    "tune": ("tune:tune", MODELS),
    "cache": ("cache:cache", MACHINE),
    "compile": ("compile:compile_ahead", MACHINE),
}
HELP = {"help_option_names": ["-h", "--help"]}
LONGEST_REASON = 3000  # letters of an error that are looked at
SIGNALLED = 128  # and the signal's number, as shells count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sdjax`; `arguments` are those of the process unless given. Returns the exit code.

    0: done. 1: an error, said in one line on standard error; where it is a fault of sdjax, the line names the
    file that has the traceback. 2: wrong usage. 130, 143: interrupted by Ctrl-C, by SIGTERM.
    """
    app = typer.Typer(
        help="Stable Diffusion in JAX: text to image, with the pixels that PyTorch gives.",
        epilog='Begin with: sdjax generate "a big red heart at the top left on a yellow background"',
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP,
    )
    app.callback()(_version_option)
    first = [*(sys.argv[1:] if arguments is None else arguments), ""][0]
    for name in [first] if first in COMMANDS else COMMANDS:  # what is not asked for is not imported
        command, panel = _command(name), COMMANDS[name][1]
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, cls=Command, rich_help_panel=panel)(command)
    return _run(app, arguments)


def _command(name: str) -> Any:
    """A command's function, or the group of commands that it is."""
    file, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(f"sdjax.cli.{file}"), function)


def convert_main(arguments: Sequence[str] | None = None) -> int:
    """Run `sdjax-convert`, which is `sdjax convert` under a name of its own. Returns the exit code, as `main` does."""
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=HELP
    )
    app.command(cls=Command)(_command("convert"))
    return _run(app, arguments)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sdjax.version import __version__

        typer.echo(__version__)
        raise typer.Exit()


def _version_option(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Say which version."),
) -> None:
    pass


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    _show_notes()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's own messages, such as "Very slow compile?", are no news
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="surrogateescape"
        )  # names of files need not be text: printed, they are what they were
    try:
        return listening(lambda: app(arguments, standalone_mode=False)) or 0
    except typer.TyperException as error:  # wrong usage
        if message := error.format_message():  # none when no command was given, and the help has been shown
            _say(f"{message.rstrip('.')}; see --help", fg="red")
        return error.exit_code
    except SdjaxError as error:
        _say(str(error), fg="red")
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error), fg="red")
    except KeyboardInterrupt as signalled:
        end_bars()
        _say("interrupted", fg="red")
        sys.stdout.flush()
        number = signalled.args[0] if signalled.args else signal.SIGINT  # a second Ctrl-C has none
        os._exit(SIGNALLED + number)  # the thread of the command may still be busy, and would be waited for
    except MemoryError:
        end_bars()
        _say("there is not enough memory: ask for fewer or smaller pictures, or close other programs", fg="red")
    except Exception as error:
        end_bars()
        _say_fault(error)
    return 1


def _say_fault(error: Exception) -> None:
    """One last line for what is ours to mend, and the traceback in a file."""
    reason = shorten(f"{type(error).__name__}: {error}"[:LONGEST_REASON], 300)
    written = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="sdjax-", suffix=".txt", delete=False, errors="replace") as file:
            file.write(written)
        where = f"send the traceback in {file.name}"
    except OSError:  # a full disk, for instance
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"say that it came from {frame.filename}, line {frame.lineno}"
    _say(f"this is a fault of sdjax ({reason}); to report it, {where}", fg="red")


def _show_notes() -> None:
    """Let what the library logs and warns of appear in the manner of the other messages."""
    log = logging.getLogger("sdjax")
    log.setLevel(logging.INFO)
    log.handlers = [_Notes()]
    logging.getLogger().addHandler(logging.NullHandler())  # or a library would add one that says all of it again
    warnings.showwarning = lambda message, *_: _say(str(message), fg="yellow")


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage(), fg="yellow" if record.levelno >= logging.WARNING else None)


def _say(message: str, fg: str | None) -> None:
    typer.secho(f"sdjax: {safe(' '.join(message.split()))}", fg=fg, err=True)
