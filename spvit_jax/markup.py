"""The parts that our pages are made of: HTML that needs nothing beside it, no script either."""

from collections.abc import Iterable, Sequence
from html import escape

from spvit_jax.stylesheet import STYLESHEET

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """Puts parts together to a page; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLESHEET}</style>\n</head>\n"
        "<body>\n" + "\n".join(filter(None, parts)) + "\n</body>\n</html>\n"
    )


def header(title: str, text: str, figures: Iterable[tuple[str, str]]) -> str:
    """The title, a sentence, and the numbers that matter most, each with its name in front."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures
    )
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        f'<p class="soft">{escape(text)}</p>\n<dl class="figures">{cells}</dl>\n</header>'
    )


def section(title: str, content: str) -> str:
    """A part of the page; "" where it has no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def table(cells: Sequence[Sequence[str]], taken: str = "", text: Sequence[int] = ()) -> str:
    """A table that scrolls where it is too wide.

    Args:
      cells: its head, then rows that each begin with their name.
      taken: the name of a row that stands out.
      text: columns that are flush left, as the first is.
    """
    head, *others = cells

    def row(values: Sequence[str]) -> str:
        mark = ' class="taken"' if taken and values[0] == taken else ""
        rest = (
            f"<td{_text(i, text)}>{escape(value)}</td>" for i, value in enumerate(values) if i > 0
        )
        return f'<tr{mark}><th scope="row">{escape(values[0])}</th>{"".join(rest)}</tr>'

    names = (f'<th scope="col"{_text(i, text)}>{escape(name)}</th>' for i, name in enumerate(head))
    return scrolls(
        f"<table><thead><tr>{''.join(names)}</tr></thead>"
        f"<tbody>{''.join(map(row, others))}</tbody></table>",
        head[0],
    )


def scrolls(content: str, name: str) -> str:
    """Makes a part of its own of a table that may be too wide for the screen."""
    attributes = f'class="scrolls" tabindex="0" role="region" aria-label="{escape(name)}"'
    return f"<div {attributes}>{content}</div>"


def _text(column: int, text: Sequence[int]) -> str:
    return ' class="text"' if column in text else ""
