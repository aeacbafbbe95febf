"""Keeps Orbax and TensorStore from printing pages about what they raise to their caller as well."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator

LOGGERS = ("absl", "asyncio")  # Orbax's, and that of the tasks which it leaves behind


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, faults in the threads of Orbax and TensorStore are not printed; others are."""
    before = sys.unraisablehook

    def unraisable(fault: "sys.UnraisableHookArgs") -> None:
        frames = traceback.extract_tb(fault.exc_traceback)
        theirs = frames and "orbax" in frames[-1].filename
        if not theirs and str(fault.exc_value) != "Event loop is closed":
            before(fault)

    sys.unraisablehook = unraisable
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_not_theirs)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(_is_not_theirs)


def _is_not_theirs(record: logging.LogRecord) -> bool:
    theirs = "orbax" in record.pathname or record.name == "asyncio"
    return not theirs or record.levelno < logging.ERROR
