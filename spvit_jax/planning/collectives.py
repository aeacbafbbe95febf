"""What the devices send each other in a compiled program, read from its HLO text."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_COLLECTIVE = re.compile(rf"^({'|'.join(KINDS)})(?:-start)?$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_LISTS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


def sent(hlo: str, devices: int, loops: int = 1) -> dict[str, int]:
    """Bytes that each device sends in one run of a program, by the kind of collective.

    Counted as rings send: of ``n`` devices that reduce ``b`` bytes, each sends ``2 (n - 1) / n b``;
    to gather parts of ``b`` bytes, ``(n - 1) b``; to scatter a sum of ``b`` or to exchange ``b``,
    ``(n - 1) / n b``; a permutation sends all ``b``.

    Args:
      hlo: the text of a compiled program, partitioned: arrays have the size of a device's part.
      devices: how many take part.
      loops: how often the body of a loop runs that has collectives in it.
    """
    totals: Counter[str] = Counter()
    lines = _computations(hlo)
    repeated = _reached(lines, _bodies(lines))
    for name, body in lines.items():
        sizes = {instruction: _bytes(shape) for instruction, shape, _, _ in body}
        for _, _, operation, rest in body:
            kind = _COLLECTIVE.match(operation)
            if kind:
                operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
                size = sum(sizes.get(operand, 0) for operand in operands)
                times = loops if name in repeated else 1
                totals[kind[1]] += times * _ring(kind[1], size, _group(rest, devices))
    return dict(totals)


def _computations(hlo: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """The instructions of each computation: name, shape, operation, and what follows it."""
    computations: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    current = ""
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name, shape, operation, rest = instruction.groups()
            computations[current].append((name, shape, operation, rest))
    return computations


def _called(body: list[tuple[str, str, str, str]]) -> Iterator[tuple[str, str]]:
    """The computations that a computation runs, each with the operation that does."""
    for _, _, operation, rest in body:
        for names in _CALLED.findall(rest):
            for name in re.findall(r"[\w.-]+", names):
                yield operation, name


def _bodies(lines: dict[str, list[tuple[str, str, str, str]]]) -> set[str]:
    return {
        name for body in lines.values() for operation, name in _called(body) if operation == "while"
    }


def _reached(lines: dict[str, list[tuple[str, str, str, str]]], start: set[str]) -> set[str]:
    """``start`` and all computations that they run."""
    names, todo = set(start), list(start)
    while todo:
        for _, name in _called(lines.get(todo.pop(), [])):
            if name not in names:
                names.add(name)
                todo.append(name)
    return names


def _bytes(shape: str) -> int:
    """The size of an array, or of all in a tuple."""
    total = 0
    for kind, sides in _ARRAY.findall(shape):
        bits = re.search(r"\d+", kind)
        size = 8 if kind == "pred" else int(bits[0]) if bits else 0
        total += math.prod(int(side) for side in sides.split(",") if side) * size // 8
    return total


def _group(rest: str, devices: int) -> int:
    """How many devices take part in one collective together."""
    if lists := _LISTS.search(rest):
        return lists[1].count(",") + 1
    if iota := _IOTA.search(rest):
        return int(iota[2])
    if mesh := _MESH.search(rest):
        sizes = dict(pair.split("=") for pair in mesh[1].replace("'", "").split(","))
        return math.prod(int(sizes[axis]) for axis in mesh[2].replace("'", "").split(","))
    return devices


def _ring(kind: str, size: int, count: int) -> int:
    """Bytes that one of ``count`` devices sends, which each give ``size`` bytes."""
    if kind == "collective-permute":
        return size
    if kind == "all-gather":
        return (count - 1) * size
    return (2 if kind == "all-reduce" else 1) * (count - 1) * size // count
