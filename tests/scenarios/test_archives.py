"""Archives: what is in them comes out, and nothing else happens, whoever made them."""

import gzip
import io
import stat
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios._archives import Limits, unpack, verify
from scenarios._looks import looks_like
from scenarios.errors import DataError

LIMITS = Limits(max_files=50, max_bytes=100_000)
TAR_MODES = ["w", "w:gz", "w:bz2", "w:xz"]
FILES = {"top/a.txt": b"alpha", "top/deep/er/b.bin": bytes(range(256)) * 20, "top/empty": b"", "c": b"x"}


def write_tar(path, files=FILES, mode="w:gz", headers=(), **options):
    with tarfile.open(path, mode, **options) as tar:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for header in headers:
            tar.addfile(header)
    return path


def write_zip(path, files=FILES, infos=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*files.items(), *infos]:
            archive.writestr(name, data)
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, *needles, limits=LIMITS):
    """Both ways refuse in one line, and nothing is left behind."""
    folder = archive.parent / "target"
    folder.mkdir(exist_ok=True)
    before = tree(archive.parent)
    for action in (
        lambda: unpack([archive], folder, limits, advice="get it again"),
        lambda: verify(archive, limits, advice="get it again"),
    ):
        with pytest.raises(DataError) as caught:
            action()
        message = str(caught.value)
        assert "\n" not in message
        for needle in (str(archive), "get it again", *needles):
            assert needle in message
        assert tree(archive.parent) == before
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [*TAR_MODES, "zip"])
def test_content_comes_out_whatever_the_archive_is_called(tmp_path, mode):
    archive = tmp_path / "wrong.name"
    write_zip(archive) if mode == "zip" else write_tar(archive, mode=mode)
    target = tmp_path / "target"
    target.mkdir()
    verify(archive, LIMITS, advice="")
    assert tree(target) == {}
    unpack([archive], target, LIMITS, advice="")
    assert tree(target) == FILES
    assert sorted(path.name for path in target.iterdir()) == ["c", "top"]


def test_several_archives_share_a_folder_and_join_what_is_there(tmp_path):
    target = tmp_path / "target"
    (target / "top").mkdir(parents=True)
    (target / "top" / "a.txt").write_text("old")
    (target / "top" / "own").write_text("kept")
    one = write_tar(tmp_path / "1", {"top/a.txt": b"new"})
    two = write_tar(tmp_path / "2", {"top/b.txt": b"two", "else/c": b"c"})
    three = write_zip(tmp_path / "3", {"top/b.txt": b"three"})
    unpack([one, two, three], target, LIMITS, advice="")
    assert tree(target) == {"top/a.txt": b"new", "top/own": b"kept", "top/b.txt": b"three", "else/c": b"c"}
    three.write_bytes(three.read_bytes()[:-30])
    with pytest.raises(DataError):
        unpack([write_tar(tmp_path / "4", {"new": b"4"}), three], target, LIMITS, advice="")
    assert "new" not in tree(target)


@pytest.mark.parametrize("mode", TAR_MODES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_every_truncated_tar_is_refused(tmp_path, mode, share):
    archive = tmp_path / "archive"
    whole = write_tar(tmp_path / "whole", mode=mode).read_bytes()
    # A plain tar ends in blocks of zeros of which one is enough to know that it is complete.
    end = len(whole) if mode != "w" else len(whole.rstrip(b"\0")) + 1
    archive.write_bytes(whole[: int(end * share)])
    refused(archive)


def test_a_plain_tar_cut_between_two_files_is_refused(tmp_path):
    whole = write_tar(tmp_path / "whole", {"a": b"1" * 512, "b": b"2" * 512}, mode="w").read_bytes()
    archive = tmp_path / "archive"
    for length in (1024, 1024 + 100, 2048):
        archive.write_bytes(whole[:length])
        refused(archive, "truncated")
    archive.write_bytes(whole[: 2048 + 512])
    verify(archive, LIMITS, advice="")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_every_truncated_zip_is_refused(tmp_path, share):
    archive = tmp_path / "archive"
    whole = write_zip(tmp_path / "whole").read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    refused(archive)


@pytest.mark.parametrize("write", [lambda path: write_tar(path, mode="w:gz"), write_zip])
def test_a_changed_byte_is_found_by_the_checksum_of_the_format(tmp_path, write):
    archive = write(tmp_path / "archive")
    data = bytearray(archive.read_bytes())
    position = data.index(b"alpha") if b"alpha" in data else len(data) // 2
    data[position] ^= 1
    archive.write_bytes(data)
    refused(archive)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), cut=st.integers(1, 8))
@pytest.mark.parametrize("write", [lambda path: write_tar(path, mode="w:bz2"), write_zip])
def test_missing_bytes_are_the_fault_of_the_archive_and_not_of_the_disk(tmp_path, write, position, cut):
    archive = write(tmp_path / "archive")
    data = archive.read_bytes()
    archive.write_bytes(data[: 4 + position] + data[4 + position + cut :])
    refused(archive)


ESCAPES = ["/etc/passwd", "../outside", "top/../../outside", "..\\outside", "C:\\outside", "\\outside", "a/.."]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    refused(write_tar(tmp_path / "tar", {"good": b"1", name: b"2"}), "leads out of the folder")
    refused(write_zip(tmp_path / "zip", {"good": b"1", name: b"2"}), "leads out of the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    header = tarfile.TarInfo("top/link")
    header.type, header.linkname = kind, "a.txt"
    refused(write_tar(tmp_path / "tar", headers=[header]), "'top/link'", "a link, a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, kind):
    info = zipfile.ZipInfo("top/link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    refused(write_zip(tmp_path / "zip", infos=[(info, b"/etc")]), "'top/link'", "a link, a device")


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_bombs_are_refused_before_they_are_written(tmp_path, write):
    refused(write(tmp_path / "large", {"zeros": bytes(5_000_000)}), "unpacks to more than 0 MB")
    refused(write(tmp_path / "many", {str(number): b"" for number in range(51)}), "more than 50 files")
    just = write(tmp_path / "just", {str(number): bytes(2000) for number in range(50)})
    verify(just, LIMITS, advice="")


def test_a_bomb_of_headers_or_of_what_follows_is_refused(tmp_path):
    header = tarfile.TarInfo("a" * 3_000_000)
    refused(write_tar(tmp_path / "names", {}, headers=[header], format=tarfile.PAX_FORMAT), "unpacks to more")
    tail = write_tar(tmp_path / "tail", {"a": b"1"}, mode="w")
    tail.write_bytes(gzip.compress(tail.read_bytes() + bytes(3_000_000)))
    refused(tail, "unpacks to more")


def test_the_same_file_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "tar", "w") as tar:
        for data in (b"1", b"2"):
            header = tarfile.TarInfo("a")
            header.size = 1
            tar.addfile(header, io.BytesIO(data))
    refused(tmp_path / "tar", "twice")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n\n <html lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML document"),
        (b"Not found\n", "text"),
        (b"", "an empty file"),
        (b"%PDF-1.5", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes([0x8F, 0x02, 0xE1, 0xFF, 0x00, 0x9A] * 7), "something unknown"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, content, words):
    archive = tmp_path / "data.tar.gz"
    archive.write_bytes(b"\0" + content if words == "something unknown" else content)
    refused(archive, f"is no archive, it looks like {words}")
    assert looks_like(archive.read_bytes()[:512]).startswith(words)


def test_gzip_without_a_tar_inside_is_refused(tmp_path):
    archive = tmp_path / "page.tar.gz"
    archive.write_bytes(gzip.compress(b"<html>" * 200))
    refused(archive)
