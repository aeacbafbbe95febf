import pytest

from spvit_jax.training import trace


def traces(folder):
    return list(folder.rglob("*.xplane.pb"))


@pytest.mark.parametrize(("steps", "expected"), [(5, 0), (6, 1), (30, 1)])
def test_a_trace_is_written_once_its_steps_have_come(tmp_path, steps, expected):
    with trace.Trace(str(tmp_path)) as found:
        for _ in range(steps):
            found.before_step()
    assert len(traces(tmp_path)) == expected


def test_no_trace_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with trace.Trace("") as found:
        for _ in range(30):
            found.before_step()
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_step_leaves_the_trace_of_those_before(tmp_path):
    with pytest.raises(KeyError), trace.Trace(str(tmp_path)) as found:
        for _ in range(8):
            found.before_step()
        raise KeyError
    assert len(traces(tmp_path)) == 1
