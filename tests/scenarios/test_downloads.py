"""Downloads against a server on the loopback interface with every fault that has been seen in the wild."""

import hashlib
import json
import multiprocessing
import socket
import time
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import serving

from scenarios import _downloads, _transfer
from scenarios._downloads import RemoteFile, Wish, fetch
from scenarios.errors import DataError
from scenarios.pins import Pins

DATA = bytes(range(251)) * 400
NAME = "data.bin"
KEY = "dataset/toy/data.bin"


def record(server, **values):
    return RemoteFile(f"{server.url}/{NAME}", NAME, **values)


def known(server, data=DATA):
    return record(server, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def wish(**values):
    return Wish(owner="dataset=toy", pin_key=KEY, by_hand="put it there yourself", **values)


class Fetching:
    """Fetching into a folder, with pins beside it."""

    def __init__(self, root):
        self.folder = root / "data"
        self.place = self.folder / NAME
        self.part = self.folder / (NAME + ".part")
        self.pins = Pins(root / "pins.json")
        self.seen = []

    def __call__(self, file, request=None):
        return fetch(
            file,
            self.folder,
            request or wish(),
            pins=self.pins,
            progress=lambda done, total: self.seen.append((done, total)),
        )

    def refused(self, file, *needles, request=None):
        with pytest.raises(DataError) as caught:
            self(file, request)
        message = str(caught.value)
        assert "\n" not in message
        for needle in ("dataset=toy", *needles):
            assert needle in message
        return message

    def put(self, data, origin=None):
        """Leave a part behind as an earlier attempt would."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.part.write_bytes(data)
        if origin is not None:
            (self.folder / (NAME + ".part.json")).write_text(json.dumps(origin))

    def clean(self):
        """Nothing but the file, and locks, is left."""
        names = {path.name for path in self.folder.iterdir() if not path.name.endswith(".lock")}
        return names == {NAME} and self.place.read_bytes() == DATA


@pytest.fixture
def fetching(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_transfer, "STALL_SECONDS", 0.3)
    return Fetching(tmp_path)


def origin_of(server):
    return {"url": f"{server.url}/{NAME}", "validator": '"one"', "total": len(DATA)}


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_a_file_is_fetched_compared_and_renamed(fetching):
    with serving({NAME: DATA}) as server:
        assert fetching(known(server)) == fetching.place
    assert fetching.clean()
    assert fetching.seen[0] == (0, len(DATA))
    assert fetching.seen[-1] == (len(DATA), len(DATA))
    assert fetching.pins.get(KEY) is None  # known hashes need no pin


@pytest.mark.parametrize("hashes", [{}, {"md5": hashlib.md5(DATA).hexdigest()}])
def test_a_file_that_is_there_opens_no_connection(fetching, no_sockets, hashes):
    fetching.folder.mkdir()
    fetching.place.write_bytes(DATA)
    for _ in range(2):
        assert fetching(RemoteFile("http://127.0.0.1:9/x", NAME, **hashes)) == fetching.place
    assert (fetching.pins.get(KEY) is None) == bool(hashes)


def test_without_length_and_hash_the_first_content_is_pinned(fetching):
    with serving({NAME: DATA}, chunked=True) as server:
        fetching(record(server))
        assert fetching.pins.get(KEY) == hashlib.sha256(DATA).hexdigest()
        fetching.place.unlink()
        fetching(record(server))
        fetching.place.unlink()
        server.files[NAME] = DATA[::-1]
        fetching.refused(record(server), "seen the first time", "pins.json", "put it there yourself")
    assert not fetching.place.exists()
    assert not fetching.part.exists()


def test_an_unknown_content_is_looked_into_before_it_is_pinned(fetching):
    def refuse(path):
        assert path.read_bytes() == DATA
        raise DataError("dataset=toy: no good archive")

    with serving({NAME: DATA}) as server:
        fetching.refused(record(server), "no good archive", request=wish(accept=refuse))
        assert fetching.pins.get(KEY) is None
        fetching(record(server), wish(accept=lambda path: None))
    assert fetching.pins.get(KEY) is not None


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gains=st.lists(st.integers(_transfer.STALL_BYTES, len(DATA) // 4 - 1), max_size=4), ranges=st.booleans())
def test_broken_connections_are_taken_up_where_they_ended(fetching, gains, ranges):
    cuts = gains if ranges else list(accumulate(gains))  # without ranges each attempt starts anew and must come further
    fetching.place.unlink(missing_ok=True)
    with serving({NAME: DATA}, cut_after=list(cuts), ranges=ranges) as server:
        fetching(known(server))
        asked = [headers.get("Range") for _, headers in server.requests]
    assert fetching.clean()
    assert asked == [None, *(f"bytes={end}-" for end in accumulate(gains))]


def test_a_later_run_goes_on_from_the_part(fetching):
    with serving({NAME: DATA}, cut_after=[1000, 0, 0]) as server:
        fetching.refused(known(server), "could not be downloaded", "1,000 bytes are kept")
        assert fetching.part.read_bytes() == DATA[:1000]
        fetching(known(server))
        assert server.requests[-1][1]["Range"] == "bytes=1000-"
        assert server.requests[-1][1]["If-Range"] == '"one"'
    assert fetching.clean()
    assert fetching.seen[-1] == (len(DATA), len(DATA))


def test_a_complete_part_is_only_compared_and_renamed(fetching, no_sockets):
    fetching.put(DATA, {"url": "http://127.0.0.1:9/x", "validator": '"one"', "total": len(DATA)})
    fetching(RemoteFile("http://127.0.0.1:9/x", NAME, md5=hashlib.md5(DATA).hexdigest()))
    assert fetching.clean()


def test_last_modified_serves_where_the_tag_is_weak_or_missing(fetching):
    date = "Mon, 01 Jan 2024 00:00:00 GMT"
    for etag in ('W/"one"', None):
        fetching.place.unlink(missing_ok=True)
        with serving({NAME: DATA}, etag=etag, modified=date, cut_after=[500]) as server:
            fetching(known(server))
            assert server.requests[-1][1]["If-Range"] == date
        assert fetching.clean()


def test_without_any_validator_everything_starts_anew(fetching):
    with serving({NAME: DATA}, etag=None, cut_after=[500]) as server:
        fetching(known(server))
        assert [headers.get("Range") for _, headers in server.requests] == [None, None]
    assert fetching.clean()


@pytest.mark.parametrize(
    "part, changes, options",
    [
        (b"x" * 700, {"validator": '"older"'}, {}),  # the file changed on the server
        (b"x" * 700, {"url": "http://elsewhere/data.bin"}, {}),
        (b"x" * 700, {"total": 5}, {}),  # longer than what it is a part of
        (b"x" * (len(DATA) + 1), {}, {}),
        (DATA[:700], {}, {"ranges": False}),  # the server ignores the range
        (DATA[:700], {}, {"total_in_ranges": 999_999}),  # the rest of another file
        (DATA[:700], {}, {"start_in_ranges": 3}),
        (b"x" * 700, None, {}),  # nothing is known about the part
    ],
)
def test_a_part_of_something_else_is_thrown_away(fetching, part, changes, options):
    with serving({NAME: DATA}, **options) as server:
        fetching.put(part, None if changes is None else origin_of(server) | changes)
        fetching(known(server))
    assert fetching.clean()


def test_a_part_beyond_the_end_is_thrown_away(fetching):
    with serving({NAME: DATA}) as server:
        fetching.put(b"x" * 700, origin_of(server) | {"total": None})
        server.status = 416
        file = RemoteFile(f"{server.url}/{NAME}", NAME, bytes=len(DATA))
        fetching.refused(file, "416")  # the second attempt starts anew and is refused for good
        assert "Range" in server.requests[0][1]
        assert "Range" not in server.requests[1][1]
    assert not fetching.part.exists()


def test_a_damaged_note_about_a_part_counts_as_none(fetching):
    with serving({NAME: DATA}) as server:
        fetching.put(b"x" * 700)
        (fetching.folder / (NAME + ".part.json")).write_text('{"url": 3')
        fetching(known(server))
    assert fetching.clean()


def test_a_damaged_part_is_found_by_the_hash_and_not_used_twice(fetching):
    with serving({NAME: DATA}) as server:
        fetching.put(b"x" * 700, origin_of(server))
        fetching.refused(known(server), "is not the official file", "sha256", known(server).sha256)
        fetching(known(server))
    assert fetching.clean()


def test_a_server_that_falls_silent_is_given_up(fetching):
    with serving({NAME: DATA}, stall_after=2000, ranges=False) as server:
        start = time.monotonic()
        fetching.refused(known(server), "timed out", server.url, "put it there yourself")
        assert time.monotonic() - start < 3


def test_after_a_silence_the_rest_is_fetched(fetching):
    with serving({NAME: DATA}, stall_after=len(DATA) // 2 + 1) as server:
        fetching(known(server))
        assert len(server.requests) == 2
    assert fetching.clean()


def test_a_server_that_gives_single_bytes_is_given_up(fetching):
    with serving({NAME: DATA}, drip=0.05, ranges=False) as server:
        fetching.refused(known(server), "less than 1024 bytes came in 0.3 s")


def test_a_server_that_gives_a_few_bytes_at_each_attempt_is_given_up(fetching):
    with serving({NAME: DATA}, cut_after=[5] * 50) as server:
        fetching.refused(known(server), "are kept in")
        assert len(server.requests) <= 3


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_a_refusal_is_final(fetching, status):
    with serving({NAME: DATA}, status=status) as server:
        fetching.refused(known(server), str(status), "put it there yourself")
        assert len(server.requests) == 1


def test_nobody_listens(fetching):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    fetching.refused(RemoteFile(f"http://127.0.0.1:{port}/x", NAME), "refused", "put it there yourself")
    assert time.monotonic() - start < 2


def test_a_page_under_the_name_of_the_file(fetching):
    page = b"<!DOCTYPE html><html><title>Log in</title>"
    with serving({NAME: page}) as server:
        fetching.refused(record(server, md5="0" * 32), "an HTML page", "not " + "0" * 32)
        fetching.refused(known(server), "42 bytes", f"{len(DATA):,}")
    assert not fetching.place.exists()


def test_another_length_than_the_official_one_is_refused_before_it_is_read(fetching):
    with serving({NAME: DATA}) as server:
        fetching.refused(record(server, bytes=17), f"{len(DATA):,} bytes", "17")
    assert fetching.seen == []


def test_a_server_that_promises_more_than_it_gives(fetching):
    with serving({NAME: DATA}, claimed_length=len(DATA) + 9) as server:
        fetching.refused(record(server), "could not be downloaded")
    assert fetching.pins.get(KEY) is None


@pytest.mark.parametrize("hashes", [{"md5": "0" * 32}, {"sha256": "0" * 64}, {"bytes": 17}])
def test_a_wrong_file_put_there_is_named_and_left_alone(fetching, no_sockets, hashes):
    fetching.folder.mkdir()
    fetching.place.write_bytes(DATA)
    message = fetching.refused(RemoteFile("http://127.0.0.1:9/x", NAME, **hashes), str(fetching.place), "delete")
    assert str(next(iter(hashes.values()))) in message
    assert fetching.place.read_bytes() == DATA


def test_without_an_address_the_user_is_told_where_to_put_it(fetching, no_sockets):
    fetching.refused(RemoteFile(None, NAME), str(fetching.place), "no address", "put it there yourself")


def test_too_little_space_is_said_before_a_connection_or_the_first_byte(fetching, monkeypatch):
    free = _downloads.SPARE_BYTES + len(DATA) + 400
    monkeypatch.setattr(_downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    with serving({NAME: DATA}) as server:
        fetching.refused(known(server), "MB free", str(fetching.folder), request=wish(room=401))
        assert server.requests == []
        fetching.refused(record(server), "MB free", request=wish(room=401))  # the length is the server's
        assert len(server.requests) == 1
        assert fetching.seen == []
        fetching(known(server), wish(room=400))
    assert fetching.clean()


def test_a_part_needs_only_space_for_the_rest(fetching, monkeypatch):
    free = _downloads.SPARE_BYTES + len(DATA) - 700
    monkeypatch.setattr(_downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    with serving({NAME: DATA}) as server:
        fetching.put(DATA[:700], origin_of(server))
        fetching(record(server))
    assert fetching.clean()


def test_a_folder_that_cannot_be_made(fetching):
    fetching.folder.write_text("a file")
    with serving({NAME: DATA}) as server:
        fetching.refused(known(server), str(fetching.folder), "dataset.root")


def _fetch_in_process(file, root, answers):
    answers.put(Fetching(root)(file).read_bytes() == DATA)


def test_two_processes_at_once_download_once(fetching, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with serving({NAME: DATA}, pause=0.15) as server:
        processes = [
            context.Process(target=_fetch_in_process, args=(known(server), tmp_path, answers)) for _ in range(2)
        ]
        for process in processes:
            process.start()
        assert [answers.get(timeout=20) for _ in processes] == [True, True]
        for process in processes:
            process.join()
        assert len(server.requests) == 1
    assert fetching.clean()


def test_waiting_for_another_process_is_said(fetching, caplog):
    from scenarios._locks import locked

    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold():
        with locked(fetching.folder.parent / "lock", purpose="downloading"):
            held.set()
            time.sleep(0.3)

    process = context.Process(target=hold)
    process.start()
    assert held.wait(10)
    with locked(fetching.folder.parent / "lock", purpose="downloading the toy"):
        assert "another process is downloading the toy; waiting for it" in caplog.text
    process.join()


def test_a_download_says_at_once_what_comes_from_where(fetching, caplog):
    with serving({NAME: DATA}) as server:
        fetch(known(server), fetching.folder, wish(), pins=fetching.pins)
        assert f"downloading {server.url}/{NAME} (0.1 MB) to {fetching.place}" in caplog.text


def test_what_is_known_of_a_file_in_words():
    assert RemoteFile("u", "n", 1_000, "a", "b").words == "n (1,000 bytes, sha256 a)"
    assert RemoteFile("u", "n", md5="b").words == "n (md5 b)"
    assert "first one seen is pinned" in RemoteFile("u", "n").words
