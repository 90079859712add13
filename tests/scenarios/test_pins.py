"""Pins: the first hash stays, another is refused, a damaged file is never replaced."""

import json
import multiprocessing
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.errors import DataError
from scenarios.pins import Pins

ONE, TWO = "1" * 64, "2" * 64


def pin(path, key, sha256):
    return Pins(path).check(key, sha256, what=f"file of {key}", advice="delete it")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "below" / "pins.json"


def test_the_first_hash_is_pinned_and_stays(path):
    assert Pins(path).get("weights/a") is None
    assert pin(path, "weights/a", ONE) is True
    assert pin(path, "weights/a", ONE) is False
    assert Pins(path).get("weights/a") == ONE
    assert Pins(path).unpinned(["weights/b", "weights/a", "dataset/c/d"]) == ["weights/b", "dataset/c/d"]


def test_another_hash_is_refused_in_one_line_with_both_and_the_file(path):
    pin(path, "weights/a", ONE)
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        pin(path, "weights/a", TWO)
    message = str(caught.value)
    assert "\n" not in message
    for part in (ONE, TWO, str(path), "file of weights/a", "delete it"):
        assert part in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b'{"a": 1}', b'{"a": "12"}', b"\xff\xfe", b"{}{}"])
def test_a_damaged_file_is_named_and_never_replaced(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    calls = [lambda: Pins(path).get("a"), lambda: pin(path, "b", ONE), lambda: Pins(path).unpinned(["a"])]
    for call in calls:
        with pytest.raises(DataError, match="damaged") as caught:
            call()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_what_is_no_sha256_is_never_written(path):
    for wrong in ("", "1" * 63, "G" * 64, "A" * 64):
        with pytest.raises(ValueError, match="sha256"):
            pin(path, "a", wrong)
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"pin file .* cannot be (written|read)"):
        pin(tmp_path / "file" / "pins.json", "a", ONE)


def test_a_known_pin_needs_no_right_to_write(path):
    pin(path, "a", ONE)
    before = sorted(path.parent.iterdir())
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert pin(path, "a", ONE) is False
        assert sorted(path.parent.iterdir()) == before
    finally:
        path.parent.chmod(stat.S_IRWXU)


def test_nothing_but_pins_and_the_lock_stays_behind(path):
    pin(path, "a", ONE)
    assert {entry.name for entry in path.parent.iterdir()} <= {"pins.json", "pins.json.lock"}


@settings(max_examples=30, deadline=None)
@given(
    pins=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.text("0123456789abcdef", min_size=64, max_size=64)))
)
def test_as_a_dictionary_that_keeps_first_values(pins, tmp_path_factory):
    path = tmp_path_factory.mktemp("pins") / "pins.json"
    expected: dict[str, str] = {}
    for key, sha256 in pins:
        if expected.setdefault(key, sha256) == sha256:
            pin(path, key, sha256)
        else:
            with pytest.raises(DataError):
                pin(path, key, sha256)
    assert (json.loads(path.read_text()) if path.exists() else {}) == expected


def _pin_many(path, start):
    for number in range(start, start + 20):
        pin(path, f"key{number}", ONE)


def test_processes_at_once_lose_no_pin(path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_pin_many, args=(path, start)) for start in (0, 20, 10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert set(json.loads(path.read_text())) == {f"key{number}" for number in range(40)}


def test_the_default_place_is_the_data_folder_and_reading_is_light():
    code = (
        "import sys, platformdirs; from scenarios.pins import Pins; p = Pins();"
        "assert p.path == platformdirs.user_data_path('cl_prompts', appauthor=False) / 'pins.json'; p.get('a');"
        "print([m for m in ('torch', 'numpy', 'avalanche') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
