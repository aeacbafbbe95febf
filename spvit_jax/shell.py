"""What every command does with the shell it is started from."""

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from spvit_jax.remote import is_transient

PASSES = 75  # the exit code of what may be well at another time, as sysexits.h has it
UNREAD = 141  # what a shell shows of who wrote to nobody: 128 + SIGPIPE


def run(main: Callable[[], Any]) -> None:
    """Runs a command and ends the process with its exit code.

    Output passes in any locale, what a terminal cannot show as a question mark; and where nobody
    reads any more, as in ``… | head``, the command ends quietly.
    """
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs it raises as well
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    code: Any = UNREAD
    try:
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except BrokenPipeError:
        code = UNREAD
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
    except Exception as error:
        if not is_exhausted(error):
            raise
        code = failed(error)
    sys.exit(code)


def is_exhausted(error: BaseException) -> bool:
    """Whether the memory of the machine, or of a device, did not do for what was asked."""
    of_jax = type(error).__name__ == "JaxRuntimeError"  # others say so of a server's quota
    return isinstance(error, MemoryError) or (of_jax and "RESOURCE_EXHAUSTED" in str(error))


def failed(error: Exception) -> int:
    """Says on stderr what went wrong; returns the exit code: 2, or 75 where it may pass."""
    if is_exhausted(error):
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        error = MemoryError(
            f"out of memory ({reason}); take smaller images, a smaller batch or model, or a machine"
            " that has more"
        )
    sys.stderr.write(f"error: {error}\n")
    return PASSES if is_transient(error) else 2
