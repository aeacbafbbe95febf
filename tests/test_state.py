"""Values that a run writes as JSON and reads back; damage to files is named, and only damage."""

import dataclasses
import math
import random

import pytest

from spvit_jax import checksums
from spvit_jax.config import Config, ConfigError
from spvit_jax.quality import Quality
from spvit_jax.state import StateError, dumps, loads, typed
from spvit_jax.trials import Trial, Tried
from spvit_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Inner:
    """A part of ``Whole``."""

    counts: tuple[int, ...]
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Whole:
    """A value with all that there is in it."""

    name: str
    size: float
    parts: tuple[Inner, ...]
    by_name: dict[str, Inner] | None


WHOLE = Whole("ä", 2.0, (Inner((1, 2)), Inner((), 0.5)), {"a": Inner((3,))})


def test_what_is_written_is_read_back():
    assert typed(Whole, loads(dumps(WHOLE).encode())) == WHOLE
    assert typed(Whole, loads(dumps(dataclasses.replace(WHOLE, by_name=None)).encode()))
    endless = typed(Whole, loads(dumps(dataclasses.replace(WHOLE, size=math.inf)).encode()))
    assert math.isnan(endless.size)
    for kind in (Quality | Whole, Whole | Quality):
        assert typed(kind, loads(dumps(WHOLE).encode())) == WHOLE
        assert typed(kind, {"images": 3, "top1": 1}) == Quality(3, top1=1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 3}, "name must be str, got '3'"),
        ({"size": "2"}, "size must be float"),
        ({"size": True}, "size must be float"),
        ({"parts": {}}, "parts must be tuple"),
        ({"parts": [3]}, r"parts\[0\] must be a JSON object"),
        ({"parts": [{"counts": [1.5]}]}, r"parts\[0\]\.counts\[0\] must be int"),
        ({"parts": [{}]}, r"parts\[0\] lacks \['counts'\]"),
        ({"by_name": {"b": {"counts": [], "more": 1}}}, r"by_name\.b .* has \['more'\]"),
        ({"other": 1}, r"it lacks \[\], has \['other'\]"),
    ],
)
def test_a_value_of_another_type_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        typed(Whole, loads(dumps(WHOLE).encode()) | changes)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"1" * 5000, '{"a"'.encode("utf-16")],
)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        loads(text)


TRIAL = Trial("scored", "msa skip", 2, 0.5)
DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "flipped": lambda text: text.replace(b"0.5", b"0.6"),
    "another type": lambda text: b"[1]",
    "nested": lambda text: b"[" * 100_000,
    "not UTF-8": lambda text: text.replace(b"scored", b"scor\xffd"),
    "NaN": lambda text: text.replace(b"0.5", b"NaN"),
    "a key less": lambda text: text.replace(b'"macs": 2,', b""),
}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_the_way_out(tmp_path, damage, checked):
    folder = Workdir(tmp_path)
    folder.write_json("tried.json", Tried((TRIAL,)))
    assert folder.read_json("tried.json", Tried) == Tried((TRIAL,))
    file = tmp_path / "tried.json"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    if not checked:
        (tmp_path / checksums.FILE).unlink()
        if damage == "flipped":
            return
    said = r"tried\.json is damaged \(.*\); put it back, or remove it, and the same command"
    with pytest.raises(StateError, match=said) as raised:
        folder.read_json("tried.json", Tried)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400 + len(str(tmp_path))


def test_a_folder_in_place_of_a_file_is_named_when_read_and_when_written(tmp_path):
    folder = Workdir(tmp_path)
    (tmp_path / "tried.json" / "x").mkdir(parents=True)
    with pytest.raises(StateError, match="it is a folder"):
        folder.read_json("tried.json", Tried)
    with pytest.raises(StateError, match="move away what stands there"):
        folder.write_json("tried.json", Tried(()))
    folder.write_json("file", {})
    with pytest.raises(StateError, match="move away what stands there"):
        folder.write_json("file/tried.json", Tried(()))


def test_a_run_killed_between_two_writes_leaves_nothing_that_looks_damaged(tmp_path, monkeypatch):
    folder = Workdir(tmp_path)
    folder.write_json("tried.json", Tried(()))
    published = checksums.publish

    class Killed(BaseException):
        pass

    def killed(local, final):
        if final.name != checksums.FILE:
            raise Killed
        published(local, final)

    monkeypatch.setattr("spvit_jax.workdir.publish", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            folder.write_json("tried.json", Tried((TRIAL,)))
        assert folder.read_json("tried.json", Tried) == Tried(())
    monkeypatch.setattr("spvit_jax.workdir.publish", published)
    folder.write_json("tried.json", Tried((TRIAL,)))
    assert folder.read_json("tried.json", Tried) == Tried((TRIAL,))


def test_damage_to_the_checksums_is_named_and_their_loss_is_said(tmp_path):
    folder, config = Workdir(tmp_path), Config()
    assert folder.claim(config) == ""
    folder.began({"images": 3})
    folder.write_json("tried.json", Tried((TRIAL,)))
    file, rng = tmp_path / checksums.FILE, random.Random(0)
    whole = file.read_bytes()
    for _ in range(50):
        place = rng.randrange(len(whole))
        flipped = bytes([whole[place] ^ 1 << rng.randrange(7)])
        file.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            assert folder.read_json("tried.json", Tried) == Tried((TRIAL,))  # a blank changed
        except StateError as error:
            assert "checksums.json is damaged" in str(error) and "as they are" in str(error)
    with pytest.raises(ConfigError, match=r"checksums\.json is damaged"):
        file.write_bytes(whole[:-9])
        folder.claim(config)
    file.unlink()
    assert "gone: checksums.json; " in folder.claim(config)
    assert folder.claim(config) == "" and folder.read_json("tried.json", Tried)


def test_what_a_run_is_of_is_known_when_its_configuration_is_gone(tmp_path):
    folder = Workdir(tmp_path)
    folder.claim(Config(seed=1))
    folder.began({"images": 3})
    folder.write_json("dense.json", Quality(3))
    for name in ("config.json", "began.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"another configuration, and config\.json.* is gone"):
        folder.claim(Config(seed=2))
    folder.claim(Config(seed=1))
    with pytest.raises(ConfigError, match=r"has changed, and began\.json.* is gone"):
        folder.began({"images": 4})
    folder.began({"images": 3})
    assert (tmp_path / "began.json").exists() and (tmp_path / "config.json").exists()


def test_a_note_that_is_gone_and_that_nothing_knows_is_said(tmp_path):
    folder, config = Workdir(tmp_path), Config()
    (tmp_path / "log.txt").touch()  # of no run
    assert [folder.claim(config) for _ in range(2)] == ["", ""]
    folder.began({"images": 3})
    folder.write_json("dense.json", Quality(3))
    assert folder.claim(config) == ""
    for name in ("began.json", "checksums.json"):
        (tmp_path / name).unlink()
    assert folder.claim(config).startswith("gone: began.json, checksums.json; whether ")
    folder.began({"images": 4})
    assert folder.claim(config) == ""
    for name in ("config.json", "began.json", "checksums.json"):
        (tmp_path / name).unlink()
    assert folder.claim(Config(seed=1)).startswith("gone: began.json, checksums.json, config")


def test_a_finished_run_is_looked_through(tmp_path):
    folder = Workdir(tmp_path)
    folder.write("model", lambda path: path.write_bytes(b"weights"))
    folder.write_json("result.json", Tried(()))
    (tmp_path / "metrics").write_text("1\n")
    folder.keep("metrics")
    folder.keep("nothing")
    assert folder.finished("result.json", Tried, ("model",)) == Tried(())
    (tmp_path / "metrics").write_text("2\n")
    with pytest.raises(StateError, match="damaged"):
        folder.keep("metrics")
    folder.forget("metrics")
    folder.keep("metrics")
    (tmp_path / "metrics").write_text("3\n")
    (tmp_path / "model").write_bytes(b"weightz")
    said = r"finished, but metrics, model is not what it has written; put .* and result\.json"
    with pytest.raises(StateError, match=said):
        folder.finished("result.json", Tried, ("model",))
    (tmp_path / "model").unlink()
    with pytest.raises(StateError, match="finished, but model is gone"):
        folder.finished("result.json", Tried, ("model",))
