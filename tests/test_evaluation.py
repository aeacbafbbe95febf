"""The report of an evaluation: numbers by hand, a table, a figure for any number of classes."""

import warnings

import matplotlib.image
import numpy as np
import pytest

from spvit_jax.evaluation import ClassReport, Report, figure, report, summary, table
from spvit_jax.state import dumps, loads, typed
from spvit_jax.training.evaluate import Evaluation

NAMES = ("cat", "dog", "owl", "yak")
COUNTS = np.array(  # the model knows two classes more than the data
    [
        [6, 1, 0, 0, 0, 1],
        [2, 2, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 3, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
)
FOUND = Evaluation(COUNTS, top5_hits=15, left_out=3)


def made():
    return report(FOUND, NAMES, model="small", form="deploy", data="pets, test")


def test_every_number_by_hand():
    found = made()
    assert (found.images, found.left_out, found.top1, found.top5) == (16, 3, 11 / 16, 15 / 16)
    assert found.classes == (
        ClassReport("cat", 8, 0.75, 0.75, "dog", 1 / 8),
        ClassReport("dog", 4, 0.5, 2 / 3, "cat", 0.5),
        ClassReport("owl", 0, None, 0.0, None, None),
        ClassReport("yak", 4, 0.75, 1.0, "owl", 0.25),
    )


def test_a_class_that_only_the_model_knows_has_a_number():
    counts = COUNTS.copy()
    counts[3, 5] = 4
    found = report(Evaluation(counts, 11, 0), NAMES, model="m", form="dense", data="d")
    assert (found.classes[3].most_confused_with, found.classes[3].confused) == ("class 5", 0.5)


def test_it_comes_back_from_json():
    assert typed(Report, loads(dumps(made()).encode())) == made()


def test_the_table_is_aligned_and_the_worst_come_first():
    lines = table(made()).split("\n")
    assert lines[0] == "small: top-1 68.75%, top-5 93.75% of 16 images; 3 could not be read"
    assert lines[2] == "The 3 of 3 classes with the lowest accuracy:"
    assert [line.split()[0] for line in lines[5:8]] == ["dog", "cat", "yak"]
    assert lines[5].split() == ["dog", "4", "50.00", "66.67", "cat", "(50.0%)"]
    every = lines[lines.index("Every class:") + 1 :]
    assert [line.split()[0] for line in every[2:]] == list(NAMES)
    assert every[4].split() == ["owl", "0", "–", "0.00", "–"]
    assert {line[: every[0].index("images") + 6].rstrip()[-1] for line in every[2:]} == set("8404")


def test_the_summary_has_five_of_many():
    count = 30
    diagonal = np.diag(np.arange(count) + 1)
    found = Evaluation(diagonal + np.roll(np.eye(count, dtype=int), 1, 1), diagonal.sum(), 0)
    names = tuple(f"n{i}" for i in range(count))
    text = summary(report(found, names, model="m", form="dense", data="d"))
    assert [line.split()[0] for line in text.split("\n")[5:]] == ["n0", "n1", "n2", "n3", "n4"]
    assert "could not be read" not in text


@pytest.mark.parametrize("count", [2, 3, 10, 45, 300])
def test_a_figure_of_any_number_of_classes(tmp_path, count):
    rng = np.random.default_rng(count)
    counts = rng.poisson(0.5, (count, count)) + np.diag(rng.integers(5, 50, count))
    counts[1] = 0
    if count == 10:
        counts = np.pad(counts, ((0, 2), (0, 2)))
        counts[3, 11] = 7
    names = tuple(f"{'a very long name of a class ' * (i % 3)}{i} $x^$ 猫" for i in range(count))
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure(Evaluation(counts, 0, 0), names, "title $y^$", path)
    height, width = matplotlib.image.imread(path).shape[:2]
    assert height > 400 and width > 400
    assert list(tmp_path.iterdir()) == [path]


def test_the_figure_shows_shares_of_rows(tmp_path):
    counts = np.array([[1, 999], [30, 10]])
    figure(Evaluation(counts, 0, 0), ("a", "b"), "", tmp_path / "one.png")
    figure(Evaluation(counts * [[5], [1]], 0, 0), ("a", "b"), "", tmp_path / "same.png")
    figure(Evaluation(counts[:, ::-1], 0, 0), ("a", "b"), "", tmp_path / "other.png")
    one, same, other = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "same", "other"))
    assert one == same != other
