"""
invoke's program with our exit codes: `./inv` starts it.

What a flag, a task name or a missing value gets wrong is a usage error of docs/reference/cli.md, as
JSON where `--json` was given.
"""

import atexit
import contextlib
import gc
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import invoke
from invoke._version import __version__
from invoke.exceptions import Exit, ParseError
from invoke.parser.context import ParserContext
from invoke.program import Program
from invoke.util import enable_logging

from deploy.cli.arguments import drop_empty_variables, path_from_caller
from deploy.cli.boundary import error_boundary
from deploy.cli.invoke_config import CheckedConfig, check_config, check_config_file
from deploy.cli.streams import fill_closed_descriptors, guard_streams
from deploy.cli.sudo_password import take_sudo_password
from deploy.cli.terminal import close_output
from deploy.errors import UsageError
from deploy.leases.signals import signals_interrupt
from deploy.private_files import check_directory, use_private_umask

_PRIVATE = (Path(__file__).parents[2] / ".slipway", Path("~/.cache/slipway"))
_CONFIG_FILE = "INVOKE_RUNTIME_CONFIG"
_ARGUMENT = re.compile(r"<Argument: ([\w-]+)[^>]*>")  # how invoke prints a flag


class SlipwayProgram(Program):
    """
    invoke, with usage errors that have a code of their own and no tracebacks.
    """

    def core_args(self) -> list[Any]:
        arguments = super().core_args()
        for argument in arguments:
            if argument.name == "debug":
                argument.help = "Print the traceback of an error, and log what invoke does."
        return list(arguments)

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        drop_empty_variables(os.environ)
        take_sudo_password(os.environ)
        words = sys.argv if argv is None else argv
        with (
            error_boundary(as_json="--json" in words, as_line="--watch" in words),
            signals_interrupt(),  # a lab that is booted is stopped again
        ):
            self._run(argv)

    def _run(self, argv: list[str] | None) -> None:
        try:
            with _usage_errors():
                self.create_config()
                self.parse_core(argv)
                self.parse_collection()
                self.parse_tasks()
                self.parse_cleanup()
                self.update_config()
            check_private_folders()
            self.execute()
        except Exit as ending:  # --help, --list, --version are done
            sys.exit(ending.code)

    def create_config(self) -> None:
        self.config = CheckedConfig()

    def parse_core(self, argv: list[str] | None) -> None:
        super().parse_core(argv)
        # invoke turns the caching of bytecode off; compiling takes longer than most commands.
        sys.dont_write_bytecode = False

    def parse_tasks(self) -> None:
        super().parse_tasks()
        refuse_empty_flags(self.tasks)
        if self.args.debug.value:  # also where it stands after the task
            enable_logging()

    def update_config(self, merge: bool = True) -> None:
        named = self.args.config.value or os.environ.get(_CONFIG_FILE)
        if named:
            path = path_from_caller(named)
            check_config_file(path)
            self.args.config._value = str(path)
        super().update_config(merge)
        check_config(self.config)


def refuse_empty_flags(tasks: Iterable[ParserContext]) -> None:
    """
    Refuse flags that are given without text, such as `--to "$VERSION"` of a script where VERSION is
    not set: taken as absent, the command would do something else than was meant.

    Raises:
        UsageError: One is.
    """
    for task in tasks:
        for argument in task.args.values():
            if argument.name == "limit":
                continue  # empty, it is a selection without a host: `inventory.select` refuses it
            if isinstance(argument.raw_value, str) and not argument.raw_value.strip():
                flag = f"--{argument.names[0].replace('_', '-')}"
                raise UsageError(
                    f"{flag}: is empty",
                    why=f"{flag} of inv {task.name} is given, and has no value; a variable of the "
                    "shell that is not set looks like this",
                    fix=f"give {flag} a value, or leave it out: inv --help {task.name}",
                )


def check_private_folders() -> None:
    """
    Take the rights of other users to what earlier runs left on this machine.

    Raises:
        DeployError: Other users own a folder of ours, or could replace it.
    """
    for path in _PRIVATE:
        with contextlib.suppress(RuntimeError):  # without a home directory there is no cache
            folder = path.expanduser()
            if folder.exists() or folder.is_symlink():
                check_directory(folder)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """
    Raise what invoke says about the words of the command line as a UsageError.
    """
    try:
        yield
    except ParseError as error:
        task = getattr(error.context, "name", None)
        raise UsageError(
            _ARGUMENT.sub(r"--\1", str(error)).rstrip("!"),
            why=f"the words after {task} do not fit its flags" if task else "no task has this name",
            fix=f"inv --help {task}" if task else "inv --list shows the tasks",
        ) from error
    except Exit as error:
        if not error.message:
            raise
        raise UsageError(error.message, why="invoke could not go on", fix="inv --list") from error
    except (ValueError, AttributeError) as error:  # of --list-depth x and --list-format x
        if not _is_of_invoke(error):
            raise
        raise UsageError(
            "a flag of invoke has a value that it does not take",
            why=str(error),
            fix="inv --help shows what each takes",
        ) from error


def _is_of_invoke(error: Exception) -> bool:
    """
    Return whether invoke itself raised *error*, and not tasks.py while it was imported.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    package = str(Path(invoke.__file__).parent)
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(package)


def main() -> None:
    """
    Run the task that the command line names.
    """
    # Imports make many objects and hardly any garbage; at the end the memory goes with the process.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    fill_closed_descriptors()
    guard_streams()
    use_private_umask()
    program = SlipwayProgram(
        name="Invoke", binary="inv[oke]", binary_names=["invoke", "inv"], version=__version__
    )
    try:
        program.run()
    finally:
        close_output()
