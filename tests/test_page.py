import base64
import dataclasses
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from spvit_jax import curve
from spvit_jax.chart import POINTS, chart, thinned, tick
from spvit_jax.curve import Point
from spvit_jax.curve_page import curve_page
from spvit_jax.examples import SHOWN, SIDE, Answer, Example, Examples
from spvit_jax.page import page
from spvit_jax.quality import Quality
from spvit_jax.report import Held, Result, notes, rows
from spvit_jax.trials import Trial

RESULT = Result(
    model="deit_mini",
    ops=("msa", "conv3x3", "conv1x1", "skip"),
    heads=(2, 0, 0, 0),
    dense_heads=(4, 4, 4, 4),
    ffn_widths=(200, 120, 256, 0),
    dense_ffn_widths=(256, 256, 256, 256),
    tokens=(65, 60, 60, 1),
    dense_tokens=(65, 65, 65, 1),
    candidates=("skip", "conv1x1", "conv3x3", "msa"),
    budgets=(Held("MACs", 30_600_000, 61_200_000, 30_508_200, 32_436_000),),
    dense_macs=61_200_000,
    pruned_macs=30_508_200,
    dense_published_macs=66_150_000,
    pruned_published_macs=31_700_000,
    decision="scored, merged",
    dense_quality=Quality(2000, top1=0.9105, top5=0.99),
    decided_quality=Quality(2000, top1=0.612, top5=0.9),
    pruned_quality=Quality(2000, top1=0.903, top5=0.99),
    dense_params=1_254_000,
    shared_params=801_000,
    folded_params=702_100,
    timings=None,
    measure_batch=64,
    device="cpu",
    seed=0,
)
HEADLESS = dataclasses.replace(
    RESULT,
    candidates=(),
    budgets=(),
    decision="given",
    tokens=RESULT.dense_tokens,
    **{
        f"{name}_quality": Quality(200, cosine=value, cosine_worst=0.5, error=0.3)
        for name, value in (("dense", 1.0), ("decided", 0.91), ("pruned", 0.9712))
    },
)
TRIALS = (Trial("scored", "msa skip", 8_330_000, 0.06), Trial("scored, merged", "a", 8, 0.1, 0.03))
SEARCH = [{"step": step, "budget/MACs": 2 - 0.1 * step} for step in range(1, 9)]
TUNING = [{"step": step, "loss": 1 / step, "top1": 0.5} for step in range(1, 9)]
WRONG = Answer("dog", 0.75, False)
VOID = {"meta", "img", "line", "circle", "polyline"}


def picture(side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def seen(count=2, side=8, label="cat", wrong=WRONG):
    one = Example(picture(side), (side, side), label, Answer(label, 0.9, True), wrong, None)
    return Examples(200, 3, 9, (one,) * count)


FAR = Examples(200, None, None, (Example(picture(8), (8, 8), "", None, None, 0.7531),))


class Page(HTMLParser):
    """A page read strictly: each tag is closed by its own, and no attribute stands twice."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    def titles(self):
        return [self.texts[i] for i in range(len(self.texts)) if self.texts[i] in TITLES]

    def count(self, tag, **attributes):
        return sum(t == tag and attributes.items() <= a.items() for t, a in self.tags)


TITLES = (
    "Dense and pruned",
    "What every block keeps",
    "How it got there",
    "What was tried",
    "What it gets wrong",
    "Where its features differ the most",
)


def test_features_of_heads_have_a_column_where_they_are_fewer():
    narrow = page(
        dataclasses.replace(RESULT, dims=((6, 12), (), (), ())), SEARCH, TUNING, TRIALS, seen()
    )
    assert "features of a head: keys, values" in narrow and "<td>6, 12</td>" in narrow
    assert "features of a head" not in page(RESULT, SEARCH, TUNING, TRIALS, seen())


def test_the_curve_has_a_page():
    dense, half = Quality(2000, top1=0.9105), Quality(2000, top1=0.9)
    points = (
        Point(1.0, 61_200_000, 66_150_000, 1_254_000, dense, 2.0, 1.0, 1.0, "dense"),
        Point(0.7, 40_000_000, 46_000_000, 900_000, dense, 1.5, 0.75, 1.3, "msa msa | 9,9"),
        Point(0.4, 24_000_000, 26_000_000, 500_000, half, 1.0, 0.5, 2.0, "msa-4 skip | 9,0"),
    )
    made = curve.Curve(points, fresh_head=True)
    shown = Page(curve_page(made, "deit_<mini>", base64.b64decode(picture(8)), "a <CPU>"))
    assert curve.note(made) in shown.texts and not curve.note(curve.Curve(points))
    assert "deit_<mini>, smaller and smaller" in shown.texts
    assert "Latencies on a <CPU>; made by spvit_jax." in shown.texts
    assert "top-1 (%) at 40%; dense 91.05" in shown.texts and "0.39×" in shown.texts
    for cell in (*sum(curve.rows(points), ()), "frontier/01/model.safetensors", "msa-4 skip | 9,0"):
        assert cell in shown.texts, cell
    assert shown.count("img", src=f"data:image/png;base64,{picture(8)}") == 1


def test_all_is_there():
    found = Page(page(RESULT, SEARCH, TUNING, TRIALS, seen()))
    assert found.titles() == list(TITLES[:5])
    for cell in (*sum(rows(RESULT), ()), *notes(RESULT)):
        assert cell in found.texts, cell
    blocks = ["attention", "3×3 convolution", "1×1 convolution", "skip"]
    assert [text for text in found.texts if text in blocks] == blocks
    for kept in ("2 of 4", "120 of 256", "0 of 256", "60 of 65"):
        assert kept in found.texts
    assert found.count("i", style="width:50.0%") == 1 and found.count("svg") == 3
    assert found.texts.index("scored, merged") < found.texts.index("scored")  # the best one first
    assert "0 of 4" not in found.texts  # heads, where there is no attention
    assert found.count("tr", **{"class": "taken"}) == 1
    assert found.count("img", alt="test image: cat") == 2
    assert found.texts.count("✗ dog, 75%") == found.texts.count("✓ cat, 90%") == 2
    assert any("dense model gets 3 wrong and the pruned one 9" in text for text in found.texts)


def test_without_labels_search_or_shortlist_there_is_less():
    found = Page(page(HEADLESS, [], [], (), FAR))
    assert found.titles() == [TITLES[0], TITLES[1], TITLES[5]]
    assert "0.7531" in found.texts and "tokens that leave it" not in found.texts
    assert found.count("img", alt="test image") == 1 and found.count("svg") == 0


def test_a_model_that_gets_all_right_has_no_examples():
    found = Page(page(RESULT, [], [], (), Examples(200, 1, 0, ())))
    assert found.titles()[-1] == "What it gets wrong" and found.count("ul") == 0


EVIL = '<script>alert("x")</script>&\'<!--'


def test_text_of_users_is_text():
    result = dataclasses.replace(RESULT, model=EVIL, device=EVIL, decision=EVIL)
    trials = (Trial(EVIL, EVIL, 1, 0.1, 0.1),)
    answer = Answer(EVIL, 0.5, False)
    text = page(result, SEARCH, TUNING, trials, seen(label=EVIL, wrong=answer))
    found = Page(text)
    assert not found.count("script") and "<script" not in text and "<!--" not in text
    assert sum(EVIL in text for text in found.texts) >= 10
    assert found.count("img", alt=f"test image: {EVIL}") == 2


def test_it_needs_nothing_from_elsewhere_and_stays_small():
    text = page(RESULT, SEARCH * 2000, TUNING * 2000, TRIALS, seen(SHOWN, SIDE))
    assert len(text.encode()) < 1_000_000
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "use")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:") and "href" not in attributes
    assert "url(" not in text and "@import" not in text
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text


def test_a_chart_draws_what_is_finite():
    text = chart("T", {"a": [(1, 2.0), (2, math.nan), (3, 1.0)], "b": [(1, math.nan)]}, "step")
    assert len(re.search('polyline .* points="([^"]+)"', text)[1].split()) == 2
    assert "a: 2 at step 1, 1 at step 3" in text and "b:" not in text
    assert chart("T", {"b": [(1, math.nan)], "c": []}, "step") == ""
    one = chart("T", {"a": [(5, 0.0)]}, "step", ("all", 0.0))
    assert "a: 0 at step 5<" in one and "polyline" not in one and "nan" not in one


@pytest.mark.parametrize("low, high", [(0.0, 0.003), (-2.5, 1.0), (0, 7e6), (0.9, 1.1)])
def test_points_stay_inside_a_chart(low, high):
    text = chart("T", {"a": [(1, low), (2, high)]}, "step")
    numbers = [
        tuple(map(float, p.split(","))) for p in re.search('points="(.+?)"', text)[1].split()
    ]
    assert all(46 <= x <= 468 and 10 <= y <= 194 for x, y in numbers)
    assert (numbers[0][1] > numbers[1][1]) and 2 <= text.count('class="grid"') <= 7


def test_ticks_are_round_and_long_lines_thinned():
    assert [tick(x) for x in (0.0, 4, 5, 9, 0.21, 37)] == pytest.approx([1, 1, 2, 5, 0.1, 10])
    line = [(i, i) for i in range(10 * POINTS)]
    kept = thinned(line)
    assert len(kept) == POINTS and (kept[0], kept[-1]) == (line[0], line[-1])
    assert kept == sorted(set(kept))


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium")
def test_a_browser_shows_it(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(RESULT, SEARCH, TUNING, TRIALS, seen()), encoding="utf-8")
    command = "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    command += " --disable-background-networking --disable-component-update --disable-sync"
    options = f"--user-data-dir={tmp_path / 'user'} --window-size=500,900"
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*command.split(), *options.split(), f"--screenshot={shot}", file.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    colours = Image.open(shot).convert("RGB").getcolors(2**24)
    green = (42, 127, 98)  # of the bars: the style sheet and the inline styles are both applied
    assert {colour: count for count, colour in colours}.get(green, 0) > 50
