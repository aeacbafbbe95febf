import pytest

from spvit_jax.remote import absolute, is_remote, reading


class Unreadable(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "path", "expected"),
    [
        (PermissionError("no"), "gs://bucket/x", Unreadable),
        (ImportError("no gcsfs"), "gs://bucket/x", Unreadable),
        (FileNotFoundError("x"), "gs://bucket/x", FileNotFoundError),
        (PermissionError("no"), "/tmp/x", PermissionError),
        (Unreadable("mine"), "gs://bucket/x", Unreadable),
    ],
)
def test_only_errors_of_a_store_are_explained(raised, path, expected):
    with pytest.raises(expected) as found, reading(path, Unreadable):
        raise raised
    explained = expected is Unreadable and not isinstance(raised, Unreadable)
    assert explained or found.value is raised
    assert ("gcloud auth application-default login" in str(found.value)) == explained
    assert not explained or f"cannot read {path} ({type(raised).__name__}: " in str(found.value)


def test_local_paths_are_made_absolute_and_remote_ones_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("run")) == str(tmp_path / "run") and not is_remote("run")
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run" and is_remote("gs://bucket/run")
