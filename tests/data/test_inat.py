import json

import numpy as np
import pytest
from PIL import Image

from spvit_jax.config import Data
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import open_source

# category of each image; kingdoms and folders as the official files have them
TRAIN, VAL = (7, 3, 7, 5, 3), (5, 3)


def entry(number, category, year):
    return f"train_val{year}/Plants/{category}/{number}.jpg"


def write(folder, year=2018, kingdom=True):
    for split, categories in (("train", TRAIN), ("val", VAL)):
        images, annotations = [], []
        for number, category in enumerate(categories):
            name = entry(f"{split}{number}", category, year)
            path = folder / (name if kingdom else name.replace("Plants/", ""))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 5), (category, number, 0)).save(path, quality=100)
            images.append({"id": 100 + number, "file_name": name})
            annotations.append({"id": number, "image_id": 100 + number, "category_id": category})
        text = json.dumps({"images": images, "annotations": annotations})
        (folder / f"{split}{year}.json").write_text(text)


def read(folder, split="train"):
    return open_source(Data(source=f"inat:{folder}"), split)


@pytest.mark.parametrize(("year", "kingdom"), [(2018, True), (2019, False)])
def test_labels_number_classes_by_their_first_training_annotation(tmp_path, year, kingdom):
    write(tmp_path, year, kingdom)
    train, val = read(tmp_path), read(tmp_path, "val")
    assert train.class_names == val.class_names == ("7", "3", "5")
    assert (len(train), len(val)) == (5, 2)
    for source in (train, val):
        for index in range(len(source)):
            one = source[index]
            red = np.asarray(one["image"].full())[0, 0, 0].astype(int)
            assert abs(red - (7, 3, 5)[one["label"]]) <= 1
    assert len(read(tmp_path, "train[:40%]")) == 2


def test_names_come_from_categories_json_or_the_training_json(tmp_path):
    write(tmp_path)
    file = tmp_path / "train2018.json"
    names = [{"id": n, "name": f"plant {n}"} for n in (3, 5, 7)]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": names}))
    assert read(tmp_path).class_names == ("plant 7", "plant 3", "plant 5")
    (tmp_path / "categories.json").write_text(json.dumps([{"id": 3, "name": "oak"}]))
    assert read(tmp_path).class_names == ("7", "oak", "5")


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match=r"one train2018.json or train2019.json .* found 0"):
        read(tmp_path)
    write(tmp_path)
    with pytest.raises(DataError, match="iNaturalist has train and val"):
        read(tmp_path, "test")
    val = tmp_path / "val2018.json"
    content = json.loads(val.read_text())
    content["annotations"][0]["category_id"] = 9
    val.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"categories \[9\] of val have no training image"):
        read(tmp_path, "val")
    val.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match="annotates none of its images"):
        read(tmp_path, "val")
    val.write_text(json.dumps({"images": [{"id": 3}], "annotations": []}))
    with pytest.raises(DataError, match=r"val2018.json: expected 'images', a list of objects"):
        read(tmp_path, "val")
    for group, row in (
        ("images", {"id": [3]}),
        ("images", {"file_name": 5}),
        ("annotations", {"category_id": [5]}),
        ("annotations", {"category_id": "5"}),
    ):
        odd = content | {group: [content[group][0] | row]}
        val.write_text(json.dumps(odd))
        with pytest.raises(
            DataError, match=rf"val2018.json: expected '{group}', .*_.* \((int|str)\)"
        ):
            read(tmp_path, "val")
    for text in ("{", "[" * 100_000):
        val.write_text(text)
        with pytest.raises(DataError, match="cannot read .*val2018.json"):
            read(tmp_path, "val")
    (tmp_path / "categories.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a list of objects with 'id' and 'name'"):
        read(tmp_path)


def test_an_image_of_two_categories_is_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "val2018.json"
    content = json.loads(file.read_text())
    for category in (5, 3):  # the one it has, another one
        content["annotations"].append({"image_id": 100, "category_id": category})
        file.write_text(json.dumps(content))
        if category == 5:
            assert len(read(tmp_path, "val")) == 2
    with pytest.raises(DataError, match="image 100 of val has two categories, 5 and 3; leave one"):
        read(tmp_path, "val")


def test_what_is_listed_twice_is_refused(tmp_path):
    write(tmp_path)
    for names in ([(7, "a"), (7, "b"), (3, "c")], [(7, "a"), (3, "a")]):
        rows = [{"id": number, "name": name} for number, name in names]
        (tmp_path / "categories.json").write_text(json.dumps(rows))
        with pytest.raises(DataError, match="two of its categories have one id, or one name"):
            read(tmp_path)
    (tmp_path / "categories.json").unlink()
    file = tmp_path / "val2018.json"
    content = json.loads(file.read_text())
    content["images"] += content["images"][:1]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"images \[100\] of val are listed more than once"):
        read(tmp_path, "val")
