"""What the commands that take a --config share: its flag, help, and mistakes in the flags."""

import dataclasses
import difflib
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import config_flags

from spvit_jax import configs
from spvit_jax.config import Config, ConfigError, from_config_dict
from spvit_jax.remote import is_transient
from spvit_jax.shell import PASSES

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "NAME, NAME:VARIANT, or a Python file, FILE.py or FILE.py:VARIANT"
)
_HELP = {"-h", "-help", "--help", "--helpshort"}


def parse(arguments: list[str], *, help_text: str, needed: Iterable[flags.FlagHolder]) -> list[str]:
    """Reads the flags; help and mistakes in them end the process, with 0 and 2.

    So does a config that a disk does not give now, with 75.

    Args:
      arguments: of the process, its name first.
      help_text: what --help prints.
      needed: flags that must be given.
    """
    if _HELP & set(arguments):
        print(help_text)
        raise SystemExit(0)
    try:
        _check_fields(arguments)
        rest = flags.FLAGS(_with_files(arguments))[1:]
        missing = [f"--{flag.name}" for flag in needed if not flag.value]
        if missing:
            raise ConfigError(f"{' and '.join(missing)} must be given; see --help")
        if rest:
            raise ConfigError(f"unexpected argument {rest[0]!r}; see --help")
        from_config_dict(CONFIG.value)
    except (ConfigError, OSError, flags.Error) as error:
        first = _first(error)
        print(f"error: {_explained(first, error)}", file=sys.stderr)
        raise SystemExit(PASSES if is_transient(first) else 2) from None
    return arguments[:1]


def _with_files(arguments: list[str]) -> list[str]:
    """The arguments, with the file of a config that is called by its name.

    Raises:
      ConfigError: there is none of that name.
    """
    argv = list(arguments)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals and i + 1 < len(arguments):  # --config NAME
            argv[i + 1] = configs.file_of(arguments[i + 1])
        elif equals:
            argv[i] = f"{flag}={configs.file_of(value)}"
    return argv


def _check_fields(arguments: list[str]) -> None:
    """Raises ``ConfigError`` where ``--config.GROUP.FIELD`` names what is not there."""
    for argument in arguments:
        flag, _, path = argument.lstrip("-").partition("=")[0].partition(".")
        part: Any = Config()
        for name in path.split(".") if flag == "config" and path else ():
            fields = vars(part) if dataclasses.is_dataclass(part) else {}
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
                raise ConfigError(f"--config.{path}: the config has no field {name} there; {hint}")
            part = fields[name]


def _first(error: BaseException) -> BaseException:
    """What went wrong in the first place, which ml_collections wraps in errors of its own."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return error


def _explained(first: BaseException, error: BaseException) -> str:
    """Says what went wrong ``first``, where that is of a person's making."""
    if isinstance(first, OSError):
        reason = str(first).strip().rpartition("\n")[2].strip()
        return f"--config cannot be read: {reason}; configs/quickstart.py is one to begin with"
    return str(first if isinstance(first, ConfigError) else error)
