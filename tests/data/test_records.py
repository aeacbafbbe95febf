"""Sets of records: what TFDS and ``open_source`` read back, resuming, and what is refused."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from spvit_jax import lock
from spvit_jax.config import Data
from spvit_jax.data import fingerprint as fingerprints
from spvit_jax.data import manifest
from spvit_jax.data.encoded import storable
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.originals import list_folder
from spvit_jax.data.records import Recorder
from spvit_jax.data.sources import Some, open_source

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
SMALL = 2000  # bytes a shard: a few images


def encoded(seed, kind, size=(10, 12), mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def fill(root, count=4):
    """``count`` images of each of two classes in each of two splits, in all formats."""
    for at, split in enumerate(("train", "val")):
        for label, name in enumerate(("b", "a b")):
            (root / split / name / "deeper").mkdir(parents=True)
            for index in range(count):
                suffix = list(FORMATS)[index % 4]
                below = "deeper/" if index % 3 == 0 else ""
                data = encoded(index + 100 * label + 1000 * at, FORMATS[suffix])
                (root / split / name / f"{below}{index}{suffix}").write_bytes(data)


@pytest.fixture
def source(tmp_path):
    fill(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, and the set that was made of it."""
    root = tmp_path_factory.mktemp("made")
    fill(root / "source", count=12)
    recorder = Recorder(list_folder(root / "source"), root / "tfds/pets/1.0.0", shard_bytes=SMALL)
    assert (recorder.finished, recorder.total, recorder.done) == (False, 48, 0)
    told = []
    recorder.run(told.append)
    assert told == [1] * 48
    return root / "source", root / "tfds" / "pets" / "1.0.0"


def record(root, target, **options):
    return Recorder(list_folder(root), target, **options).run()


def tree(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def examples(folder, split):
    """(file name, label, bytes as stored) of each record, by TFDS's own reader."""
    records = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [
        (one["file_name"].decode(), int(one["label"]), one["image"])
        for one in map(records.__getitem__, range(len(records)))
    ]


def test_tfds_reads_jpeg_and_png_byte_for_byte_and_the_rest_as_png(made):
    source, folder = made
    info = tfds.builder_from_directory(folder).info
    assert info.features["label"].names == ["a b", "b"] and info.supervised_keys
    assert info.splits["train"].num_examples == info.splits["val"].num_examples == 24
    assert info.splits["train"].num_shards > 3
    for split in ("train", "val"):
        found = examples(folder, split)
        assert len({name for name, _, _ in found}) == 24
        for name, label, stored in found:
            given = (source / split / name).read_bytes()
            assert label == ["a b", "b"].index(name.split("/")[0])
            if name.endswith(("jpg", "png")):
                assert stored == given
            else:
                assert Image.open(io.BytesIO(stored)).format == "PNG"
                pixels = (
                    np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                    for data in (stored, given)
                )
                np.testing.assert_array_equal(*pixels)


def contents(data, split):
    source = open_source(data, split)
    found = map(source.__getitem__, range(len(source)))
    return source.class_names, [(one["label"], one["image"].full().tobytes()) for one in found]


@pytest.mark.parametrize("split", ["train", "val", "train[:30%]", "train[30%:]"])
def test_a_set_reads_as_the_folder_it_was_made_of(made, split):
    source, folder = made
    stored = Data(source="tfds:pets", directory=str(folder.parents[1]))
    assert contents(stored, split) == contents(Data(source=f"folder:{source}"), split)


@pytest.mark.parametrize("compared", ["manifest.json", "the record files' names and sizes"])
def test_a_set_prepared_again_of_other_images_is_another_one(source, tmp_path, compared):
    first, second = (source / "train" / name / "1.png" for name in ("a b", "b"))
    seen = []
    for number in range(3):
        if number == 2:
            swapped = first.read_bytes(), second.read_bytes()
            second.write_bytes(swapped[0])
            first.write_bytes(swapped[1] + bytes(compared != "manifest.json"))
        folder = tmp_path / str(number) / "pets" / "1.0.0"
        record(source, folder)
        if compared != "manifest.json":
            (folder / "manifest.json").unlink()
        data = Data(source="tfds:pets", directory=str(folder.parents[1]))
        for one in (open_source(data, "train"), Some(open_source(data, "train[:50%]"), [0, 1])):
            seen.append(fingerprint(one)[f"CRC-32 of {compared}"])
    assert len(set(seen[:4])) == 1 and len(set(seen)) == 2


def relabelled(source):
    """Two images of one size and not of the sample, each in the other's class, by their names."""
    one, other = (source / "train" / name / "1.png" for name in ("a b", "b"))
    swapped = one.read_bytes(), other.read_bytes()
    assert len(swapped[0]) == len(swapped[1])
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])


def one_pixel(source):
    path = source / "train" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")  # of its checksum, which nobody looks at


@pytest.mark.parametrize("alter", [relabelled, one_pixel])
@pytest.mark.parametrize("spread", [True, False])
def test_a_set_of_the_same_sizes_is_told_apart_without_a_manifest(
    source, tmp_path, monkeypatch, alter, spread
):
    records, some = "CRC-32 of evenly spaced records", "CRC-32 of some images"
    if not spread:
        monkeypatch.setattr(fingerprints, "RECORDS", 2)  # of which none is altered
    monkeypatch.setattr(fingerprints, "SAMPLE", 2)
    seen = []
    for number in range(3):
        if number == 2:
            alter(source)
        folder = tmp_path / str(number) / "pets" / "1.0.0"
        record(source, folder)
        (folder / "manifest.json").unlink()
        data = Data(source="tfds:pets", directory=str(folder.parents[1]))
        seen.append(fingerprint(open_source(data, "train")))
        assert {records, some, "images"} <= seen[-1].keys()
    assert seen[0] == seen[1]
    differs = {name for name in seen[0] if seen[0][name] != seen[2][name]}
    assert differs == ({records} if spread else set())


def test_damaged_records_are_left_to_whoever_trains_on_them(source, tmp_path):
    folder = tmp_path / "t" / "pets" / "1.0.0"
    record(source, folder)
    (folder / "manifest.json").unlink()
    whole = fingerprint(
        open_source(Data(source="tfds:pets", directory=str(tmp_path / "t")), "train")
    )
    (shard,) = folder.glob("pets-train*")
    content = bytearray(shard.read_bytes())
    content[1000:1100] = bytes(100)
    shard.write_bytes(content)
    found = fingerprint(
        open_source(Data(source="tfds:pets", directory=str(tmp_path / "t")), "train")
    )
    name = "CRC-32 of evenly spaced records"
    assert found["images"] == whole["images"] and found[name] != whole[name]


@pytest.mark.parametrize("name", ["pets", "cifar10"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_a_set_that_lost_a_file_says_which_and_what_to_do(made, tmp_path, name, file):
    if (name, file) == ("cifar10", "features.json"):
        return  # TFDS's own code knows them
    folder = tmp_path / name / "1.0.0"
    shutil.copytree(made[1], folder)
    for path in folder.glob("pets-*"):
        path.rename(folder / path.name.replace("pets", name))
    text = (folder / "dataset_info.json").read_text().replace('"pets"', f'"{name}"')
    (folder / "dataset_info.json").write_text(text)
    if name == "cifar10":
        name = "cifar10:1.0.0"
    (folder / file).unlink()
    said = rf"{file} is missing.*; put it back .*prepare (the set|it) again(:\n  python -m spv.*)?"
    with pytest.raises(DataError, match=said) as error:
        open_source(Data(source=f"tfds:{name}", directory=str(tmp_path)), "train")
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", [b"", b"[1, 2]", b"[" * 100_000, b"\xff\xfe{}", b'{"name": 5}'])
def test_a_set_whose_description_is_damaged_is_to_be_prepared_again(made, tmp_path, file, damage):
    shutil.copytree(made[1], tmp_path / "pets" / "1.0.0")
    (tmp_path / "pets" / "1.0.0" / file).write_bytes(damage)
    with pytest.raises(DataError, match=rf"cannot open 'pets' in {tmp_path} \(.*prepare it again"):
        open_source(Data(source="tfds:pets", directory=str(tmp_path)), "train")


def test_data_source_of_tfds(made):
    records = tfds.data_source("pets", data_dir=made[1].parents[1], split="val")
    assert len(records) == 24 and records[3]["image"].shape == (10, 12, 3)


def test_checksum_is_that_of_the_shell(made):
    source, folder = made
    found = manifest.read(folder)["splits"]
    command = (
        "find -L * -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum | cut -c -64"
    )
    for split in ("train", "val"):
        shell = subprocess.check_output(command, shell=True, cwd=source / split, text=True)
        assert found[split]["sha256"] == shell.strip()
        sums = "".join(
            f"{hashlib.sha256(stored).hexdigest()}  {name}\n"
            for name, _, stored in sorted(examples(folder, split))
        )
        assert found[split]["stored_sha256"] == hashlib.sha256(sums.encode()).hexdigest()
        assert found[split]["images"] == 24 and found[split]["converted"] == 12
        sizes = [f.stat().st_size for f in (source / split).rglob("*") if f.is_file()]
        assert found[split]["bytes"] == sum(sizes) and found[split]["skipped"] == {}


def test_same_images_give_the_same_bytes_wherever_they_lie(made, tmp_path):
    source, folder = made
    source.parent.joinpath("link").symlink_to(source)
    record(source.parent / "link", tmp_path / "pets" / "1.0.0", shard_bytes=SMALL)
    assert tree(tmp_path / "pets" / "1.0.0") == tree(folder)


KILLED_AND_RESUMED = """
    import os, pathlib, shutil, signal, sys
    from spvit_jax.data import records, shards
    from spvit_jax.data.originals import list_folder

    source, target, whole = map(pathlib.Path, sys.argv[1:])
    step = int(os.environ["STEP"])
    events = 0

    def event(last):
        global events
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function, last):
        def wrapped(*arguments, **options):
            event(last)
            result = function(*arguments, **options)
            event(last)
            return result
        return wrapped

    def run(last):
        pathlib.Path.replace = around(pathlib.Path.replace, last)
        shutil.rmtree = around(shutil.rmtree, last)
        shards._check = around(shards._check, last)
        originals = list_folder(source)
        recorder = records.Recorder(originals, target, shard_bytes=2000)
        recorder.run(lambda images: event(last))

    def in_child(last):
        child = os.fork()
        if not child:
            run(last)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def tree(folder):
        return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    def written():
        files = [f for f in target.parent.rglob("*.array_record-*") if f.suffix != ".partial"]
        return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns)
                for f in files if f.suffix != ".json"}

    moment, kept = 1, set()
    while True:
        shutil.rmtree(target.parent, ignore_errors=True)
        status = in_child(moment)
        if not status:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        before = written()
        kept.add(len(before))
        assert not target.exists() or tree(target) == tree(whole), moment
        assert in_child(-1) == 0, moment
        assert tree(target) == tree(whole), moment
        assert os.listdir(target.parent) == [target.name], moment
        assert written().items() >= before.items(), moment
        moment += step
    print(moment, len(kept))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(source, tmp_path):
    whole = tmp_path / "whole" / "pets" / "1.0.0"
    record(source, whole, shard_bytes=SMALL)
    shards = len(list(whole.glob("*.array_record*")))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AND_RESUMED)]
        + [str(path) for path in (source, tmp_path / "killed" / "pets" / "1.0.0", whole)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "STEP": "3"},
    )
    assert result.returncode == 0, result.stderr
    moments, kept = map(int, result.stdout.split())
    assert moments > 16 + 6 * shards and kept == shards + 1  # died with 0, 1, ... shards there


def test_finished_set_is_left_alone(made):
    source, folder = made
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    recorder = Recorder(list_folder(source), folder, shard_bytes=SMALL)
    assert recorder.finished and recorder.run() == manifest.read(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_set_of_other_images_is_refused(source, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    record(source, folder)
    (source / "val" / "b" / "one more.png").write_bytes(encoded(7, "PNG"))
    with pytest.raises(DataError, match=r"was made of other images \(train 8, val 8\)"):
        record(source, folder)


def test_folder_made_by_something_else_is_refused(source, tmp_path):
    (tmp_path / "pets" / "1.0.0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no manifest\.json, so something else made it"):
        record(source, tmp_path / "pets" / "1.0.0")


def break_off(source, folder, after=9, **options):
    """Begins a set of ``source`` and is stopped after some images."""
    recorder = Recorder(list_folder(source), folder, shard_bytes=SMALL, **options)
    told = []

    def stop(images):
        told.append(images)
        if len(told) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder.run(stop)


def test_begun_set_of_other_images_is_refused(source, tmp_path):
    break_off(source, tmp_path / "pets" / "1.0.0")
    (source / "train" / "b" / "one more.png").write_bytes(encoded(7, "PNG"))
    with pytest.raises(DataError, match=r"was begun with other images .*\(16 images, now 17\)"):
        record(source, tmp_path / "pets" / "1.0.0")


def test_begun_set_without_its_plan_is_begun_anew(made, tmp_path):
    source, whole = made
    folder = tmp_path / "pets" / "1.0.0"
    break_off(source, folder)
    (tmp_path / "pets" / "1.0.0.incomplete" / "plan.json").unlink()
    (tmp_path / "pets" / "1.0.0.incomplete" / "set" / "of another set").touch()
    record(source, folder, shard_bytes=SMALL)
    assert tree(folder) == tree(whole)


def test_shard_that_leaves_out_an_image_stays_only_if_that_is_still_asked_for(source, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    first = list_folder(source).splits["train"][0]
    (source / "train" / first.path).write_bytes(b"no image")
    break_off(source, folder, skip_bad=True)
    assert Recorder(list_folder(source), folder, skip_bad=True, shard_bytes=SMALL).done
    with pytest.raises(DataError, match=f"cannot decode .*{first.path}"):
        record(source, folder, shard_bytes=SMALL)


def test_replaced_image_has_only_its_own_shard_written_again(source, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    break_off(source, folder, after=15)
    done = Recorder(list_folder(source), folder, shard_bytes=SMALL).done
    first = list_folder(source).splits["train"][0]
    (source / "train" / first.path).write_bytes(encoded(7, "PNG", size=(10, 13)))
    recorder = Recorder(list_folder(source), folder, shard_bytes=SMALL)
    assert 8 <= recorder.done < done
    recorder.run()
    assert examples(folder, "train")[0][2] == storable(encoded(7, "PNG", size=(10, 13)), "")


def test_a_second_process_is_kept_out(source, tmp_path):
    work = tmp_path / "pets" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    said = f"another process is writing .*process {os.getpid()}"
    with lock.locked(epath.Path(work)), pytest.raises(DataError, match=said):
        record(source, tmp_path / "pets" / "1.0.0")
    record(source, tmp_path / "pets" / "1.0.0")


JPEG = encoded(1, "JPEG", size=(64, 64))
BAD = {
    "no image": b"no image at all",
    "cut in the header": JPEG[:100],
    "cut in the middle": JPEG[: len(JPEG) // 2],
    "cut PNG": encoded(1, "PNG")[:200],
    "damaged PNG": encoded(1, "PNG")[:60] + b"xx" + encoded(1, "PNG")[62:],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_image_is_named_or_left_out(source, tmp_path, data):
    folder = tmp_path / "pets" / "1.0.0"
    bad = source / "train" / "b" / "1.png"
    bad.write_bytes(data)
    with pytest.raises(DataError, match=r"train/b/1\.png.*--skip-bad leaves such images out"):
        record(source, folder, shard_bytes=SMALL)
    assert not folder.exists()
    found = record(source, folder, skip_bad=True, shard_bytes=SMALL)["splits"]["train"]
    assert list(found["skipped"]) == ["b/1.png"] and found["images"] == 7
    assert "cannot decode" in found["skipped"]["b/1.png"]
    assert "b/1.png" not in [name for name, _, _ in examples(folder, "train")]
    with pytest.raises(DataError, match="leaves out 1 bad images"):
        record(source, folder, shard_bytes=SMALL)
    assert Recorder(list_folder(source), folder, skip_bad=True).finished
    manifest.verify(folder)


def test_shards_without_the_bad_image_stay_when_it_is_to_be_left_out(source, tmp_path):
    last = list_folder(source).splits["val"][-1]
    (source / "val" / last.path).write_bytes(b"no image")
    folder = tmp_path / "pets" / "1.0.0"
    with pytest.raises(DataError, match="cannot decode"):
        record(source, folder, shard_bytes=SMALL)
    recorder = Recorder(list_folder(source), folder, skip_bad=True, shard_bytes=SMALL)
    assert recorder.done >= 8
    recorder.run()
    assert len(examples(folder, "val")) == 7


def test_names_that_are_not_utf8_are_refused_before_anything_is_written(source, tmp_path):
    os.link(source / "val" / "b" / "deeper" / "0.jpg", os.fsencode(source / "val/b") + b"/\xe9.jpg")
    with pytest.raises(DataError, match="/val/b/%DCE9.jpg is not UTF-8; rename it"):
        record(source, tmp_path / "pets" / "1.0.0")
    assert not (tmp_path / "pets").exists()


def test_empty_files_are_all_named_before_anything_is_written(source, tmp_path):
    for name in ("0.jpg", "3.webp"):
        (source / "val" / "b" / "deeper" / name).write_bytes(b"")
    with pytest.raises(DataError, match="2 files are empty: .*0.jpg.*3.webp|3.webp.*0.jpg"):
        record(source, tmp_path / "pets" / "1.0.0")
    assert not (tmp_path / "pets").exists()
    found = record(source, tmp_path / "pets" / "1.0.0", skip_bad=True)
    assert set(found["splits"]["val"]["skipped"]) == {"b/deeper/0.jpg", "b/deeper/3.webp"}


def test_split_of_bad_images_only_is_refused(source, tmp_path):
    for file in (source / "val").rglob("*.*"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image for pets-val.*can be decoded"):
        record(source, tmp_path / "pets" / "1.0.0", skip_bad=True)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_of_any_mode_and_with_bytes_behind_its_end_is_untouched(mode):
    data = encoded(3, "JPEG", mode=mode)
    for one in (data, data + bytes(200), data + b"and something else"):
        assert storable(one, "x.jpg") is one
    assert storable(encoded(3, "GIF"), "x.jpg").startswith(b"\x89PNG")


def test_verify_tells_damage(made, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    record(made[0], folder)
    assert manifest.verify(folder) == manifest.read(folder)
    (shard,) = folder.glob("*-val.*")
    intact = shard.read_bytes()
    image = examples(folder, "val")[5][2]
    at = intact.index(image[20:60]) + 10
    shard.write_bytes(intact[:at] + b"????" + intact[at + 4 :])
    with pytest.raises(DataError, match="is damaged: val"):
        manifest.verify(folder)
    shard.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(DataError, match="is damaged: val"):
        manifest.verify(folder)
    shard.write_bytes(intact)
    told = []
    manifest.verify(folder, told.append)
    assert sum(told) == 48


def test_verify_takes_what_may_pass_for_no_damage(made, tmp_path, monkeypatch):
    def not_now(*arguments):
        raise RuntimeError(f"open() failed: {os.strerror(errno.EIO)}; opening x.array_record")

    record(made[0], tmp_path / "pets" / "1.0.0")
    monkeypatch.setattr(manifest, "_stored_sums", not_now)
    with pytest.raises(OSError, match="open\\(\\) failed"):
        manifest.verify(tmp_path / "pets" / "1.0.0")


@pytest.mark.parametrize(("key", "value"), [("stored_sha256", "0" * 64), ("images", 1)])
def test_verify_compares_with_the_manifest(made, tmp_path, key, value):
    folder = tmp_path / "pets" / "1.0.0"
    record(made[0], folder)
    found = manifest.read(folder)
    found["splits"]["train"][key] = value
    (folder / manifest.FILE).write_text(json.dumps(found))
    with pytest.raises(DataError, match="damaged: train has other images than were"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("[1, 2]", r"it lacks listing \(str\), splits \(dict\)"),
        ("[" * 100_000, "recursion"),
        ('{"listing": "", "splits": {"val": []}}', r"its split val lacks images \(int\), bytes"),
        (None, "it holds 48 images, manifest.json says 1,000,000,000,000,024;"),
    ],
)
def test_a_manifest_that_is_damaged_is_refused_before_the_set_is_read(
    made, tmp_path, damaged, message
):
    folder = tmp_path / "pets" / "1.0.0"
    shutil.copytree(made[1], folder)
    content = manifest.read(folder)
    content["splits"]["train"]["images"] = 10**15
    (folder / manifest.FILE).write_text(damaged or json.dumps(content))
    with pytest.raises(DataError, match=f"is damaged.*{message}.*remove"):
        manifest.count(folder)


def test_a_set_that_tfds_cannot_open_is_damaged(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "pets")
    (tmp_path / "pets" / "features.json").write_text("[1]")
    with pytest.raises(DataError, match="is damaged: TFDS cannot open it .*; remove it, prepare"):
        manifest.verify(tmp_path / "pets")


@pytest.mark.parametrize("damaged", ["[1]", "[" * 100_000, '{"images": 5, "shards": 5}'])
@pytest.mark.parametrize("file", ["plan.json", "pets-*.json"])
def test_notes_of_an_interrupted_set_that_are_damaged_are_none(source, tmp_path, file, damaged):
    folder = tmp_path / "pets" / "1.0.0"
    break_off(source, folder)
    for note in (tmp_path / "pets" / "1.0.0.incomplete").glob(file):
        note.write_text(damaged)
    recorder = Recorder(list_folder(source), folder, shard_bytes=SMALL)
    assert recorder.done == 0 and recorder.run() == manifest.read(folder)


def test_verify_refuses_labels_of_no_class(made, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    record(made[0], folder)
    names = folder / "label.labels.txt"
    names.write_text("a b\n")
    with pytest.raises(DataError, match="is damaged: of train the image .* label 1; there are 1 c"):
        manifest.verify(folder)


def test_verify_compares_labels(made, tmp_path):
    folder = tmp_path / "pets" / "1.0.0"
    record(made[0], folder)
    names = folder / "label.labels.txt"
    names.write_text("b\na b\n")
    with pytest.raises(DataError, match=r"\.(jpg|png|bmp|webp) is labelled (a b|b)"):
        manifest.verify(folder)
