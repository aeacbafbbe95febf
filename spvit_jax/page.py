"""The report of a run as a page: one HTML file that needs nothing beside it, no script either."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from spvit_jax.chart import chart
from spvit_jax.examples import Answer, Example, Examples
from spvit_jax.markup import document, header, scrolls, section, table
from spvit_jax.report import Result, notes, rows
from spvit_jax.single_path.ops import OPS
from spvit_jax.trials import Trial
from spvit_jax.trials import rows as trial_rows

SMALL = 96  # pixels: what is smaller is shown enlarged, each pixel as a square
_MISSING = "–"
_DECIDED = {  # what ``Result.decision`` is in words; other ones are names of candidates
    "project": "The search's gates, projected onto the budgets, decided what stays.",
    "threshold": "The search's gates, each at 0.5, decided what stays.",
    "given": "What stays was given as an architecture.",
}
_Metrics = Sequence[Mapping[str, Any]]
_Table = tuple[Sequence[Sequence[str]], Sequence[str]]


def page(
    result: Result,
    search: _Metrics,
    finetune: _Metrics,
    trials: Sequence[Trial],
    examples: Examples,
    files: _Table | None = None,
) -> str:
    """Writes the HTML of a finished run.

    Args:
      result: of the run.
      search: its metrics, as ``report.figure`` takes them; empty without a search.
      finetune: lines of the training, with "step" and "loss", some with "top1".
      trials: of the shortlist; empty without one.
      examples: test images that the pruned model sees otherwise.
      files: exported ones next to the models: a table, and lines below it; None without.
    """
    sections = (
        _header(result),
        section("Dense and pruned", _results(result)),
        section("Its files", _files(files) if files else ""),
        section("What every block keeps", _blocks(result)),
        section("How it got there", _charts(result, search, finetune)),
        section("What was tried", _trials(result, trials)),
        section(*_examples(examples)),
        f"<footer>Seed {result.seed}, on {escape(result.device)}; made by spvit_jax.</footer>",
    )
    return document(f"{result.model}, pruned", sections)


def _header(result: Result) -> str:
    """The model's name, who decided, and the numbers that matter most."""
    dense, pruned = result.dense_quality, result.pruned_quality
    figures = [
        (f"{pruned.measure}; dense {dense.shown}{result.dense_mark}", pruned.shown),
        ("of the MACs, as run", f"{result.pruned_macs / result.dense_macs:.2f}×"),
        ("of the parameters", f"{result.folded_params / result.dense_params:.2f}×"),
    ]
    if result.timings:
        pace = result.timings["pruned"].latency_ratio
        figures.append(("of the latency, batch 1", f"{pace:.2f}×"))
    decided = _DECIDED.get(result.decision, f"Chosen by scores: {result.decision}.")
    return header(f"{result.model}, pruned", decided, figures)


def _results(result: Result) -> str:
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes(result))
    return f"{table(rows(result))}\n{paragraphs}"


def _files(files: _Table) -> str:
    cells, lines = files
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"{table(cells, text=(1,))}\n{paragraphs}"


def _blocks(result: Result) -> str:
    """A row for each block: its operation, and bars of what it keeps."""
    names = ["block", "operation", "heads", "FFN units"]
    columns = [
        (result.heads, result.dense_heads),
        (result.ffn_widths, result.dense_ffn_widths),
    ]
    if result.merges:
        names.append("tokens that leave it")
        columns.append((result.tokens, result.dense_tokens))
    if result.dims:
        names.append("features of a head: keys, values")
    body = []
    for block, name in enumerate(result.ops):
        op = OPS[name]
        cells = [_bar(kept[block], dense[block]) for kept, dense in columns]
        if not result.heads[block]:  # there is no attention
            cells[0] = f"<td>{_MISSING}</td>"
        if result.dims:
            cells.append(f"<td>{', '.join(map(str, result.dims[block])) or _MISSING}</td>")
        body.append(
            f'<tr><th scope="row">{block}</th><td><i class="swatch" style="background:{op.colour}">'
            f"</i>{escape(op.label)}</td>{''.join(cells)}</tr>"
        )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return scrolls(
        f'<table class="blocks"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        "blocks",
    )


def _bar(kept: int, dense: int) -> str:
    """A cell with a share in words and as a bar."""
    share = kept / dense if dense else 0.0
    return (
        f'<td>{kept:,} of {dense:,}<span class="bar" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i></span></td>'
    )


def _charts(result: Result, search: _Metrics, finetune: _Metrics) -> str:
    """The search's shares of its budgets, and the loss and accuracy of fine-tuning."""
    budgets = {h.unit: _line(search, f"budget/{h.unit}") for h in result.budgets}
    drawn = [
        chart("Search: what its decision takes of each budget", budgets, "step", ("budget", 1.0)),
        chart("Fine-tuning: loss", {"loss": _line(finetune, "loss")}, "step"),
    ]
    tops = [(step, 100 * value) for step, value in _line(finetune, "top1")]
    if len(tops) > 1:
        dense = result.dense_quality
        mark = None if dense.top1 is None else ("dense", 100 * dense.top1)
        drawn.append(
            chart("Fine-tuning: top-1 (%) of the test images", {"top-1": tops}, "step", mark)
        )
    content = "\n".join(filter(None, drawn))
    return f'<div class="charts">\n{content}\n</div>' if content else ""


def _line(metrics: _Metrics, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in metrics if name in row]


def _trials(result: Result, trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    text = (
        "Errors are squared, of the last tokens, over the variance of the dense model's; those that"
        " repair brought nearest to it were trained for a short while."
    )
    if result.decision in (trial.name for trial in trials):
        text += " Taken is what is in bold."
    cells = trial_rows(trials)
    return f"<p>{text}</p>\n{table(cells, result.decision, (len(cells[0]) - 1,))}"


def _examples(examples: Examples) -> tuple[str, str]:
    """The title and the content of the part with images."""
    cards = "\n".join(_card(one) for one in examples.shown)
    listed = f'<ul class="examples">\n{cards}\n</ul>' if cards else ""
    if examples.pruned_wrong is None:
        text = (
            f"Of {examples.images:,} test images, the {len(examples.shown)} whose features have"
            " moved the farthest: the cosine is that of the pruned model's features to the dense"
            " model's, 1 where they point alike."
        )
        return "Where its features differ the most", f"<p>{text}</p>\n{listed}"
    text = (
        f"Of {examples.images:,} test images, spread evenly, the dense model gets"
        f" {examples.dense_wrong:,} wrong and the pruned one {examples.pruned_wrong:,}."
    )
    if cards:
        text += " First those that only the pruned one does, from its surest mistake on."
    return "What it gets wrong", f"<p>{text}</p>\n{listed}"


def _card(example: Example) -> str:
    """An image and what is said of it."""
    width, height = example.size
    small = ' class="small"' if max(example.size) < SMALL else ""
    what = f"test image: {example.label}" if example.label else "test image"
    entries = "".join(f"<dt>{escape(name)}</dt>{cell}" for name, cell in _entries(example))
    return (
        f'<li><img{small} src="data:image/png;base64,{example.png}" width="{width}"'
        f' height="{height}" alt="{escape(what)}"><dl>{entries}</dl></li>'
    )


def _entries(example: Example) -> Iterator[tuple[str, str]]:
    """Names and cells of a card, of what is known."""
    if example.label:
        yield "true", f"<dd>{escape(example.label)}</dd>"
    for name, answer in (("dense", example.dense), ("pruned", example.pruned)):
        if answer is not None:
            yield name, _answer(answer)
    if example.cosine is not None:
        yield "cosine", f"<dd>{example.cosine:.4f}</dd>"


def _answer(answer: Answer) -> str:
    kind, sign = ("right", "✓") if answer.right else ("wrong", "✗")
    return f'<dd class="{kind}">{sign} {escape(answer.name)}, {answer.probability:.0%}</dd>'
