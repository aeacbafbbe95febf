"""Sub-splits such as ``train[:90%]``, with the meaning TFDS gives them, for every source."""

import tensorflow_datasets as tfds

from spvit_jax.data.errors import DataError


def parse(spec: str) -> tfds.core.ReadInstruction:
    """The split's name and slice: ``train``, ``train[5000:]``, ``train[:90%]``, ``train[-10%:]``.

    Raises:
      DataError: no such syntax.
    """
    refusal = DataError(
        f"cannot read the split {spec!r}: expected a name, or a name and one slice in images or"
        " percent, such as train, train[5000:] or train[:90%]"
    )
    try:
        instruction = tfds.core.ReadInstruction.from_spec(spec)
    except (ValueError, NotImplementedError) as error:
        raise refusal from error
    if not isinstance(instruction, tfds.core.ReadInstruction) or instruction.unit == "shard":
        raise refusal
    return instruction


def bounds(spec: str, length: int) -> tuple[int, int]:
    """First and one past the last index of the sub-split ``spec`` of a split of ``length`` images.

    ``x[:a]`` and ``x[a:]`` are disjoint and complete for every a, percents included.

    Raises:
      DataError: no such syntax, or nothing lies between the bounds.
    """
    instruction = parse(spec)
    name = instruction.split_name
    info = tfds.core.SplitInfo(
        name=name, shard_lengths=[length], num_bytes=0, filename_template=None
    )
    try:
        (absolute,) = instruction.to_absolute({name: info})
    except ValueError as error:
        raise DataError(f"split {spec!r} of {length} images: {error}") from error
    start = absolute.from_ or 0
    stop = length if absolute.to is None else absolute.to
    if start >= stop:
        raise DataError(f"split {spec!r} of {length} images is empty")
    return start, stop
