"""The program `thrifty`: finds commands by their files, imports the one that is used, and turns errors into
messages.

A command is a module of `thrifty.cli.commands` with a function `command` and its `EXAMPLE`. Only light
imports may stand at its top: `thrifty --help` imports all of them and answers within half a second.

Exit codes: 0 done, 1 it could not be done, 2 the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import typer.core

import thrifty
from thrifty.cli import commands as command_package
from thrifty.cli.shared import output, streams
from thrifty.errors import ThriftyError

HELP = "Run open language models inside a memory budget, and see what every saving costs."
FIRST = ("run", "chat", "fit", "bench")  # shown first in the help; the rest follow by name


class CommandFiles(MutableMapping[str, Any]):
    """The commands by name. A module is imported when its command is looked up."""

    def __init__(self) -> None:
        names = sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(command_package.__path__))
        self._names = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = _load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command
        if name not in self._names:
            self._names.append(name)

    def __delitem__(self, name: str) -> None:
        self._names.remove(name)
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Program(typer.core.TyperGroup):
    """The group of all commands. Errors that Thrifty raises on purpose become one message and exit code 1; with --json
    the message is a JSON object on standard output, as a result would be.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = CommandFiles()

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help page."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none."""
        return self.commands.get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class for what happens to errors."""
        as_json = _asks_for_json(ctx)
        try:
            with _warnings_as_messages():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:
            if debugging(ctx) or (_is_usage_error(error) and not as_json):
                raise
            raise typer.Exit(_report(error, as_json)) from error


def debugging(ctx: Any) -> bool:
    """True where `--debug` was given, or THRIFTY_DEBUG=1 is set."""
    return bool(ctx.find_root().meta.get("debug")) or os.environ.get("THRIFTY_DEBUG") == "1"


def build() -> Any:
    """The program, as a callable that takes `args`."""
    application = typer.Typer(cls=Program, help=HELP, add_completion=True, no_args_is_help=True)
    application.callback()(_program)
    return typer.main.get_command(application)


def main() -> None:
    """The entry point of the console script."""
    # NumPy's products would start threads of their own, which spin on the processors of the native pool.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    streams.prepare()
    try:
        try:
            build()(prog_name="thrifty")
        finally:
            streams.flush()
    except BrokenPipeError:
        streams.discard()
        sys.exit(1)
    except OSError as error:
        output.error(_message(error))
        streams.discard()
        sys.exit(1)


def _asks_for_json(ctx: Any) -> bool:
    """Whether `--json` is among the words of the command, which may be wrong in other ways."""
    words = [*ctx._protected_args, *ctx.args]
    return "--json" in words[: words.index("--")] if "--" in words else "--json" in words


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Within it a warning is one line for people, without file and source line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: output.warn(str(message))
        yield


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.find_root().meta["debug"] = True
    return value


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"thrifty {thrifty.__version__}")
        raise typer.Exit


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the full traceback of an error.",
        callback=_remember_debug,
        expose_value=False,
        is_eager=True,
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", callback=_print_version, expose_value=False, is_eager=True),
]


def _program(debug: Debug = False, version: Version = False) -> None:
    pass


def _only_debug(debug: Debug = False) -> None:
    pass


def _single(function: Any, name: str, epilog: str | None = None) -> Any:
    application = typer.Typer(add_completion=False, rich_markup_mode="rich")
    application.command(name, epilog=epilog)(function)
    return typer.main.get_command(application)


def _load(name: str) -> Any:
    module = importlib.import_module(f"{command_package.__name__}.{name.replace('-', '_')}")
    command = _single(module.command, name, epilog=f"Example: {module.EXAMPLE}")
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(module.command) or name).split("\n\n")]
    command.help = "\n\n".join(map(_as_written, paragraphs))
    command.short_help = paragraphs[0].split(". ")[0].rstrip(".") + "."
    command.params.extend(_single(_only_debug, name).params)
    return command


def _as_written(text: str) -> str:
    """Text whose brackets, such as those of [[weights]], are shown: rich takes them for its own marks."""
    return text.replace("[", r"\[")


def _is_usage_error(error: Exception) -> bool:
    return getattr(error, "exit_code", None) == 2 and hasattr(error, "format_message")


def _report(error: Exception, as_json: bool) -> int:
    """Print the message; the exit code."""
    output.failure(_message(error), type(error).__name__, as_json)
    return 2 if _is_usage_error(error) else 1


def _message(error: Exception) -> str:
    if _is_usage_error(error):
        return str(error.format_message())  # type: ignore[attr-defined]
    if isinstance(error, ThriftyError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the machine is out of memory. Use a smaller model, --context or --memory."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"where {error.filename} lies" if error.filename else "where the output goes"
        return f"there is no room left {place} ({error.strerror}). Make room there, or write elsewhere."
    kind = type(error).__name__
    return f"something went wrong that Thrifty did not foresee ({kind}: {error}). Repeat with --debug."
