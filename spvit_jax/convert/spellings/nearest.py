"""Of a checkpoint that nobody knows: whose names come nearest, and which of its own are strange."""

from collections.abc import Iterator

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.spellings.rules import Rule, Spelling

TIMM = tuple(
    Rule(name, "")
    for name in (
        "blocks.{i}.norm{n}.{w}", "blocks.{i}.attn.(qkv|proj).{w}", "blocks.{i}.mlp.fc{n}.{w}",
        "layers.{s}.blocks.{i}.norm{n}.{w}", "layers.{s}.blocks.{i}.attn.(qkv|proj).{w}",
        "layers.{s}.blocks.{i}.mlp.fc{n}.{w}", "patch_embed.proj.{w}", "norm.{w}", "head.{w}",
        "cls_token", "pos_embed",
    )
)  # fmt: skip
LEAST = 0.5  # of the names: a checkpoint that shares fewer is like none


def nearest(state: State, spellings: tuple[Spelling, ...]) -> str:
    """Says which spelling knows most of a checkpoint's names, and what it does not know; or ""."""
    tables = {spelling.title: spelling.rules for spelling in spellings if not spelling.lenient}
    tables["timm's ViT or Swin"] = TIMM
    strange = {title: [n for n in state if not _known(n, rules)] for title, rules in tables.items()}
    title, names = min(strange.items(), key=lambda item: len(item[1]))
    if len(names) > (1 - LEAST) * len(state):
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    shown = ", ".join(f"{name} {list(state[name].shape)}" for name in names[:5])
    return f"\nnearest is {title}, which has no {shown}{more}"


def _known(name: str, rules: tuple[Rule, ...]) -> bool:
    return any(rule.named(end) is not None for end in _ends(name) for rule in rules)


def _ends(name: str) -> Iterator[str]:
    """The name, and what is left without its first parts."""
    for separator in "./":
        parts = name.split(separator)
        yield from (separator.join(parts[i:]) for i in range(len(parts)))
