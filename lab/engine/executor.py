"""Runs a Pulumi program inside the engine's stack: started by the language host with the project's own Python.

It stays independent of the rest of this package, because the project's interpreter need not have it on its path. When
that interpreter is also the stand-ins' own, it runs in a fork of the warm process (:mod:`lab.engine.warm`).

Exit status: 0 done; 32 the user has been told what went wrong (a traceback, cut to the program's own part);
1 after ``pulumi.RunError`` (its message is shown without a traceback); otherwise what the program passed to
``sys.exit``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import runpy
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

USER_HAS_BEEN_TOLD = 32
INTERRUPTED = 130
GARBAGE_THRESHOLD = 100_000
"""New objects before Python looks for garbage among them."""

try:
    import pulumi
    import pulumi.runtime
except ImportError as error:
    print(
        f"The Python of this project ({sys.executable}) cannot load the package 'pulumi': {error}.\n"
        "Install the project's requirements into its virtual environment (pip install -r requirements.txt).",
        file=sys.stderr,
    )
    sys.exit(1)


def program_traceback(error: BaseException, program: str) -> str:
    """The traceback of ``error`` without the frames that lie before the program's own file."""
    own = os.path.realpath(program)
    own_files = {own, os.path.join(own, "__main__.py")}
    frames = traceback.extract_tb(error.__traceback__)
    for index, frame in enumerate(frames):
        if os.path.realpath(frame.filename) in own_files:
            return "".join(
                traceback.format_exception(type(error), error, error.__traceback__, limit=-(len(frames) - index))
            )
    return "".join(traceback.format_exception(error))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line that the language host writes."""
    parser = argparse.ArgumentParser(description="Run a Pulumi program written in Python")
    for option in ("monitor", "engine", "project", "stack", "organization", "root-directory", "pwd"):
        parser.add_argument(f"--{option}", default="")
    parser.add_argument("--dry-run", choices=["true", "false"], default="false")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("program")
    parser.add_argument("arguments", nargs="*")
    return parser.parse_args(arguments)


def debug_of_programs() -> None:
    """Keep the SDK's own debug messages from the engine, but not the program's.

    The SDK sends some five a resource, each a call that waits for the engine's answer: an eighth of a run's time, for
    lines that nobody sees.
    """
    send = pulumi.log.debug

    def debug(*arguments: Any, **options: Any) -> None:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("pulumi."):
            send(*arguments, **options)

    pulumi.log.debug = debug


def end_at_once(*_: object) -> None:
    """End after an interrupt, without the noise that a half-built deployment makes on its way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def run(options: argparse.Namespace) -> int:
    """Run the program to its end; returns the exit status."""
    signal.signal(signal.SIGINT, end_at_once)
    # Nearly all that a program makes stays until its end: looking for garbage as often as usual takes a tenth of its time.
    gc.set_threshold(GARBAGE_THRESHOLD)
    pulumi.runtime.set_all_config(pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env())
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            monitor=options.monitor,
            engine=options.engine,
            project=options.project,
            stack=options.stack,
            organization=options.organization,
            root_directory=options.root_directory,
            parallel=options.parallel,
            dry_run=options.dry_run == "true",
        )
    )
    debug_of_programs()
    sys.argv = [options.program, *options.arguments]
    if options.pwd:
        os.chdir(options.pwd)
    program = os.path.abspath(options.program)
    if os.path.isdir(program) and not os.path.isfile(os.path.join(program, "__main__.py")):
        pulumi.log.error(f"unable to find main python program `__main__.py` in `{program}`")
        return USER_HAS_BEEN_TOLD

    # Futures of resources that were never reached stay unobserved after a failure; asyncio's complaints help nobody.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    workers = ThreadPoolExecutor(max_workers=max(options.parallel, 1) * 4)
    loop.set_default_executor(workers)

    def program_body() -> None:
        runpy.run_path(options.program, run_name="__main__")

    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(program_body))
        return 0
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return 1
    except Exception as error:
        pulumi.log.error("Program failed with an unhandled exception:\n" + program_traceback(error, program))
        return USER_HAS_BEEN_TOLD
    finally:
        workers.shutdown(wait=True)
        loop.close()
        gc.freeze()  # nor is it worth looking through everything once more on the way out
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> int:
    """Run the program that the command line names; returns the exit status."""
    return run(parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
