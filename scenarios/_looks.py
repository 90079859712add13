"""What a file is by its first bytes, in words: the name of a downloaded file says nothing."""

from __future__ import annotations

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file"),
)
_TAR_MARK = slice(257, 262)
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title")


def looks_like(head: bytes) -> str:
    """A file in words, from its first bytes (512 are enough)."""
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    if head[_TAR_MARK] == b"ustar":
        return "a tar archive"
    if not head:
        return "an empty file"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGE_STARTS):
        return "an HTML page, such as a login or error page"
    if text.startswith(b"<"):
        return "an XML document"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return "something unknown"
