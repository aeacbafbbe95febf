"""iNaturalist 2018 and 2019: images and labels as their official JSON files list them.

Labels number the classes by their first annotation in the training JSON, as DeiT's and SPViT's
released code does: a converted head depends on it.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from spvit_jax.data.errors import DataError
from spvit_jax.remote import raise_transient

SPLITS = ("train", "val")
Files = list[tuple[str, int]]  # path below the folder, label


def list_split(folder: Path, split: str) -> tuple[Files, tuple[str, ...]]:
    """Every image of ``split`` with its label, and the names of the classes.

    Args:
      folder: has ``train2018.json`` and ``val2018.json`` (or 2019), the images below it, and
        perhaps ``categories.json`` with the classes' real names.
      split: "train" or "val".

    Raises:
      DataError: a JSON is missing, damaged or not of this form, or a class has no training image.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: iNaturalist has {' and '.join(SPLITS)}")
    train = _read(folder, "train")
    labels: dict[int, int] = {}
    for annotation in train["annotations"]:
        labels.setdefault(annotation["category_id"], len(labels))
    listing = train if split == "train" else _read(folder, split)
    categories: dict[int | str, int] = {}
    for one in listing["annotations"]:
        image, category = one["image_id"], one["category_id"]
        if categories.setdefault(image, category) != category:
            raise DataError(
                f"{folder}: image {image} of {split} has two categories, {categories[image]} and"
                f" {category}; leave one annotation of it in the JSON"
            )
    twice = [i for i, n in Counter(one["id"] for one in listing["images"]).items() if n > 1]
    if twice:
        raise DataError(f"{folder}: images {twice[:10]} of {split} are listed more than once")
    odd = sorted(set(categories.values()) - set(labels))
    if odd:
        raise DataError(f"{folder}: categories {odd[:10]} of {split} have no training image")
    files = [
        (_path(folder, one["file_name"]), labels[categories[one["id"]]])
        for one in listing["images"]
        if one["id"] in categories
    ]
    if not files:
        raise DataError(f"{folder}: the JSON of {split} annotates none of its images")
    names = _names(folder, train)
    return files, tuple(names.get(category, str(category)) for category in labels)


def _read(folder: Path, split: str) -> dict[str, Any]:
    """A split's JSON, its two lists checked for what is used of them."""
    files = sorted(folder.glob(f"{split}20[0-9][0-9].json"))
    if len(files) != 1:
        raise DataError(
            f"expected one {split}2018.json or {split}2019.json in {folder}, found {len(files)};"
            " they and the images come from https://github.com/visipedia/inat_comp"
        )
    content = _load(files[0])
    needed: dict[str, dict[str, Any]] = {
        "images": {"id": int | str, "file_name": str},
        "annotations": {"image_id": int | str, "category_id": int},
    }
    for group, kinds in needed.items():
        rows = content.get(group) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and all(isinstance(row.get(key), kinds[key]) for key in kinds)
            for row in rows
        ):
            keys = ", ".join(f"{key} ({getattr(of, '__name__', of)})" for key, of in kinds.items())
            raise DataError(f"{files[0]}: expected {group!r}, a list of objects with {keys}")
    return content


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise_transient(error)
        raise DataError(f"cannot read {file}: {error}; fetch it again") from error


def _names(folder: Path, train: dict[str, Any]) -> dict[int, str]:
    """Names by category; the training JSON's own may be hidden behind numbers."""
    file = folder / "categories.json"
    rows = _load(file) if file.exists() else train.get("categories", [])
    try:
        names = {row["id"]: str(row["name"]) for row in rows}
    except (TypeError, KeyError) as error:
        raise DataError(f"{file}: expected a list of objects with 'id' and 'name'") from error
    if not len(rows) == len(names) == len({*names.values()}):
        raise DataError(f"{folder}: two of its categories have one id, or one name")
    return names


def _path(folder: Path, name: str) -> str:
    """Where an image is; some mirrors leave out the folder of its kingdom."""
    parts = name.split("/")
    if len(parts) == 4 and not (folder / parts[0] / parts[1]).is_dir():
        return "/".join((parts[0], *parts[2:]))
    return name
