import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from spvit_jax.measure import Timing
from spvit_jax.quality import Quality
from spvit_jax.report import Held, Result, figure, table
from spvit_jax.trials import Trial
from spvit_jax.trials import table as trials_table

RESULT = Result(
    model="deit_mini",
    ops=("msa", "conv3x3", "conv1x1", "skip"),
    heads=(2, 0, 0, 0),
    dense_heads=(4, 4, 4, 4),
    ffn_widths=(200, 120, 256, 0),
    dense_ffn_widths=(256, 256, 256, 256),
    tokens=(65, 65, 65, 1),
    dense_tokens=(65, 65, 65, 1),
    candidates=("skip", "conv1x1", "conv3x3", "msa"),
    budgets=(
        Held("MACs", 30_600_000, 61_200_000, 30_508_200, 32_436_000),
        Held("parameters", 750_000, 1_254_000, 702_100, 760_500),
    ),
    dense_macs=61_200_000,
    pruned_macs=30_508_200,
    dense_published_macs=66_150_000,
    pruned_published_macs=31_700_000,
    decision="project",
    dense_quality=Quality(2000, top1=0.9105, top5=0.99),
    decided_quality=Quality(2000, top1=0.612, top5=0.9),
    pruned_quality=Quality(2000, top1=0.903, top5=0.99),
    dense_params=1_254_000,
    shared_params=801_000,
    folded_params=702_100,
    timings={
        "dense": Timing(4.31, 0.2, 812.34, 1.0, 1.0),
        "pruned": Timing(2.71, 0.1, 1405.2, 0.63, 1.73),
    },
    measure_batch=64,
    device="cpu",
    seed=0,
)
GIVEN = dataclasses.replace(
    RESULT,
    candidates=(),
    budgets=(),
    decision="given",
    dense_quality=Quality(200, cosine=1.0, cosine_worst=1.0, error=0.0, patch_cosine=1.0),
    decided_quality=Quality(200, cosine=0.91, cosine_worst=0.5, error=0.3, patch_cosine=0.9),
    pruned_quality=Quality(200, cosine=0.9712, cosine_worst=0.83, error=0.06, patch_cosine=0.95),
    timings=None,
)
MERGED = dataclasses.replace(RESULT, tokens=(53, 53, 40, 1))


def search_metrics(steps=8):
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 1.0}
        row |= {"budget/MACs": 2 - 0.1 * step, "budget/parameters": 1.7 - 0.08 * step}
        for block in range(4):
            row[f"ffn_probability/{block}"] = 0.8 - 0.05 * step
            row[f"heads_probability/{block}"] = 0.75 - 0.03 * step
            for gate in range(3):
                row[f"op_probability/{block}/{gate}"] = 0.9 - 0.02 * step * gate
        rows += [row, {"step": step, "top1": 0.8}]
    return rows


def test_table_exactly():
    assert (
        table(RESULT)
        == """\
deit_mini                        dense  pruned  pruned / dense
──────────────────────────────────────────────────────────────
top-1 (%)                        91.05   90.30    −0.75 points
MACs, as run (M)                 61.20   30.51           0.50×
MACs, as published (M)           66.15   31.70           0.48×
parameters, shared form (M)      1.254   0.801           0.64×
parameters, folded (M)           1.254   0.702           0.56×
latency, batch 1 (ms)             4.31    2.71           0.63×
throughput, batch 64 (images/s)  812.3  1405.2           1.73×

Budget: 30.60 M MACs; projected 30.51 M (−0.30%), plain 0.5 threshold 32.44 M (+6.00%).
Budget: 0.750 M parameters; projected 0.702 M (−6.39%), plain 0.5 threshold 0.760 M (+1.40%).
Speed measured on cpu."""
    )


def test_table_says_features_without_labels_and_a_dash_for_what_is_missing():
    assert (
        table(GIVEN)
        == """\
deit_mini                         dense  pruned  pruned / dense
───────────────────────────────────────────────────────────────
cosine to the dense features     1.0000  0.9712         −0.0288
  of the worst image             1.0000  0.8300         −0.1700
error of the features            0.0000  0.0600         +0.0600
cosine, patches                  1.0000  0.9500         −0.0500
MACs, as run (M)                  61.20   30.51           0.50×
MACs, as published (M)            66.15   31.70           0.48×
parameters, shared form (M)       1.254   0.801           0.64×
parameters, folded (M)            1.254   0.702           0.56×
latency, batch 1 (ms)                 –       –               –
throughput, batch 64 (images/s)       –       –               –

Budget: none, the architecture was given."""
    )


def test_an_untrained_head_is_marked_and_nothing_is_compared_with_it():
    fresh = dataclasses.replace(RESULT, fresh_head=True)
    lines = table(fresh).splitlines()
    assert lines[2].split() == ["top-1", "(%)", "91.05*", "90.30", "–"]
    assert "* The dense model's head was fresh, untrained: no measure of it." in lines
    assert Result.from_json(fresh.to_json()) == fresh
    assert "*" not in table(RESULT) + table(dataclasses.replace(GIVEN, fresh_head=True))


def test_table_counts_tokens_where_some_were_merged():
    rows = table(RESULT).splitlines()
    row = "tokens into the last block          65      40           0.62×"
    assert table(MERGED).splitlines() == [*rows[:7], row, *rows[7:]]


def test_table_chooses_units_and_says_what_was_not_projected():
    big = dataclasses.replace(
        RESULT,
        dense_macs=16_400_000_000,
        pruned_macs=8_409_000_000,
        dense_published_macs=17_580_000_000,
        pruned_published_macs=8_790_000_000,
        budgets=(
            Held("MACs (as published)", 8_790_000_000, 17_580_000_000, 8.409e9, 8_409_000_000),
            Held("ms", 2.5, 4.25, 2.5, 2.625),
        ),
        decision="threshold",
    )
    text = table(big)
    assert "MACs, as run (G)                 16.40    8.41           0.51×" in text
    assert "MACs, as published (G)           17.58    8.79           0.50×" in text
    told = "Budget: 8.79 G MACs (as published); projected –, plain 0.5 threshold 8.41 G (−4.33%)."
    assert told in text
    assert "Budget: 2.500 ms; projected –, plain 0.5 threshold 2.625 (+5.00%)." in text


@pytest.mark.parametrize("result", [RESULT, GIVEN, MERGED])
def test_json_round_trip(result):
    assert Result.from_json(result.to_json()) == result


def test_json_of_another_version_is_refused():
    values = json.loads(RESULT.to_json())
    del values["tokens"]
    values["top5"] = 0.9
    with pytest.raises(ValueError, match=r"lacks \['tokens'\], has \['top5'\] beside"):
        Result.from_json(json.dumps(values))
    with pytest.raises(ValueError, match="must be a JSON object"):
        Result.from_json("[]")


def test_blocks_have_to_match_and_ops_to_exist():
    with pytest.raises(
        ValueError, match=r"needs ops, heads, .* of every block, got \[3, 4, 4, 4, 4, 4, 4\]"
    ):
        dataclasses.replace(RESULT, ops=RESULT.ops[:3])
    with pytest.raises(ValueError, match=r"got \[4, 5, 4, 4, 4, 4, 4\]"):
        dataclasses.replace(RESULT, heads=(2, 0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"got \[4, 4, 4, 4, 4, 3, 4\]"):
        dataclasses.replace(RESULT, tokens=(53, 40, 1))
    with pytest.raises(ValueError, match="ops must be among skip, .*, msa; got .*'pool'"):
        dataclasses.replace(RESULT, ops=("msa", "pool", "skip", "skip"))


def draw(path, result=RESULT, metrics=None):
    figure(result, search_metrics() if metrics is None else metrics, path)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_figure_is_a_legible_png_written_at_once(tmp_path):
    pixels = draw(tmp_path / "report.png")
    assert pixels.shape[0] > 1200 and pixels.shape[1] > 1400
    assert 0.05 < (pixels.sum(-1) < 3 * 250).mean() < 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_figure_follows_every_input(tmp_path):
    path = tmp_path / "report.png"
    base = draw(path)
    metrics = search_metrics()
    gates = [{k: v / 2 if "prob" in k else v for k, v in row.items()} for row in metrics]
    budgets = [
        [{k: v / 2 if k == f"budget/{unit}" else v for k, v in row.items()} for row in metrics]
        for unit in ("MACs", "parameters")
    ]
    heads = [{k: v / 2 if "heads" in k else v for k, v in row.items()} for row in metrics]
    tighter = (RESULT.budgets[0], dataclasses.replace(RESULT.budgets[1], found=400_000))
    height, worse = base.shape[0], Quality(2000, top1=0.2)
    changes = {  # what changes, and the third of the page where it shows
        "ops": (0, draw(path, dataclasses.replace(RESULT, ops=("msa", "msa", "msa", "skip")))),
        "widths": (0, draw(path, dataclasses.replace(RESULT, ffn_widths=(200, 120, 90, 0)))),
        "heads": (0, draw(path, dataclasses.replace(RESULT, heads=(3, 0, 0, 0)))),
        "dims": (0, draw(path, dataclasses.replace(RESULT, dims=((6, 12), (), (), ())))),
        "published": (0, draw(path, dataclasses.replace(RESULT, pruned_published_macs=33_000_000))),
        "accuracy": (1, draw(path, dataclasses.replace(RESULT, decided_quality=worse))),
        "macs": (1, draw(path, RESULT, budgets[0])),
        "parameters": (1, draw(path, RESULT, budgets[1])),
        "found": (1, draw(path, dataclasses.replace(RESULT, budgets=tighter))),
        "gates": (2, draw(path, RESULT, gates)),
        "gates of heads": (2, draw(path, RESULT, heads)),
    }
    borders = [0, int(height * 0.37), int(height * 0.68), height]
    for name, (third, pixels) in changes.items():
        assert pixels.shape == base.shape, name
        rows = np.abs(pixels - base).sum((1, 2)).nonzero()[0]
        assert len(rows) >= 10, name
        if name in ("ops", "widths"):  # bars and not only labels
            assert (pixels != base).any(-1).sum() > 10_000, name
        assert borders[third] <= rows.min() and rows.max() < borders[third + 1], name


def test_every_op_has_a_colour_of_its_own(tmp_path):
    path = tmp_path / "report.png"
    base = draw(path, dataclasses.replace(RESULT, ops=("skip",) * 4), [])
    seen = set()
    for op in ("msa", "conv3x3", "conv1x1", "norm_skip"):
        pixels = draw(path, dataclasses.replace(RESULT, ops=(op, "skip", "skip", "skip")), [])
        changed = pixels[(pixels != base).any(-1)]
        values, counts = np.unique(changed, axis=0, return_counts=True)
        assert counts.max() > 5000, op
        seen.add(tuple(values[counts.argmax()]))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (GIVEN, []),
        (RESULT, search_metrics(1)),
        (RESULT, search_metrics(1)[:1]),
        (RESULT, [{k: v for k, v in row.items() if "heads" not in k} for row in search_metrics(3)]),
    ],
    ids=["none", "one", "one, not evaluated", "heads not under gates"],
)
def test_figure_of_few_or_no_steps(tmp_path, result, metrics):
    draw(tmp_path / "report.png", result, metrics)


@pytest.fixture
def pages(monkeypatch):
    """The figures that were saved."""
    pages, save = [], Figure.savefig

    def keep(page, *arguments, **options):
        pages.append(page)
        save(page, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return pages


def test_tokens_are_drawn_where_some_were_merged(tmp_path, pages):
    for result in (RESULT, MERGED):
        draw(tmp_path / "report.png", result)
    titles = [[axes.get_title(loc="left") for axes in page.findobj(Axes)] for page in pages]
    title = "Tokens that enter and leave every block"
    assert [one for one in titles[1] if one != title] == titles[0]
    (axes,) = (axes for axes in pages[1].findobj(Axes) if axes.get_title(loc="left") == title)
    bars = {bar.get_label(): [round(one.get_height()) for one in bar] for bar in axes.containers}
    assert bars == {"dense": [65] * 4, "enter": [65, 53, 53, 40], "leave": [53, 53, 40, 1]}
    assert [text.get_text() for text in axes.get_legend().texts] == list(bars)
    assert [text.get_text() for text in axes.texts] == ["53", "53", "40", "1"]


def test_heads_budgets_and_both_counts_are_shown_and_no_title_overlaps(tmp_path, pages):
    alphabetical = [dict(sorted(row.items())) for row in search_metrics()]  # as they are logged
    draw(tmp_path / "report.png", MERGED, alphabetical)
    (page,) = pages
    titles = [axes.get_title(loc="left") for axes in page.findobj(Axes)]
    titles = [title for title in titles if title]
    maps = ["≥ 1×1 convolution", "≥ 3×3 convolution", "attention", "attention heads (mean)"]
    assert titles[-5:] == [*maps, "FFN units (mean)"]
    texts = page.findobj(Text)
    labels = {text.get_text() for text in texts}
    assert {"2/4", "MACs", "parameters", "budget"} <= labels
    title = "deit_mini: 61.20 M → 30.51 M MACs (0.50×)\nas published 66.15 M → 31.70 M MACs (0.48×)"
    assert title in labels
    renderer = FigureCanvasAgg(page).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text() in titles]
    assert len(boxes) >= len(titles)
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_figure_says_that_there_was_no_search(tmp_path):
    given = draw(tmp_path / "a.png", dataclasses.replace(RESULT, budgets=()), [])
    logged = draw(tmp_path / "b.png", RESULT, [])
    assert (given != logged).any()  # "the architecture was given" against "logged nothing"


def test_failed_drawing_keeps_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "report.png"
    draw(path)
    before = path.read_bytes()

    def full_disk(_self, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        figure(RESULT, [], path)
    assert path.read_bytes() == before


def test_trials_are_drawn_where_nothing_was_searched(tmp_path):
    tried = [Trial("scored", "msa", 9, 0.5, 0.2), Trial("uniform depth", "skip", 9, 0.7)]

    def page(name, metrics, trials):
        path = tmp_path / name
        figure(RESULT, metrics, path, trials)
        return path.read_bytes()

    assert page("a.png", [], tried) != page("b.png", [], ())
    assert page("c.png", [], tried) != page("d.png", [], tried[::-1][:1])
    assert page("e.png", search_metrics(), tried) == page("f.png", search_metrics(), ())


def test_trials_as_a_table_exactly():
    tried = [
        Trial("scored", "conv1x1 msa:2-8", 9_350_000, 0.5),
        Trial("scored, merged", "skip msa", 12_000_000, 0.7, 0.2),
    ]
    assert (
        trials_table(tried)
        == """\
candidate       MACs (M)  error, repaired  trained  blocks
───────────────────────────────────────────────────────────────────
scored, merged     12.00           0.7000   0.2000  skip msa
scored              9.35           0.5000        –  conv1x1 msa:2-8"""
    )
