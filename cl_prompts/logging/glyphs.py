"""Class names in any script on a picture: a font that has their letters, or the number of the class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager, rcParams

FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "NanumGothic",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Unifont",
)
"""Families with many more letters than Matplotlib's own font, as Linux, Windows and macOS bring them."""


def drawable(names: Sequence[str]) -> tuple[list[bool], list[str]]:
    """Which names can be drawn here, and in which fonts.

    Returns:
        One flag a name, and the families to draw with: the ones in use, then those installed fallbacks of `FALLBACKS`
        that have letters the others lack. No font is looked at beyond the first if that one has all letters.
    """
    families = list(rcParams["font.family"])
    path = font_manager.findfont(font_manager.FontProperties(family=families))
    missing = {letter for name in names for letter in name} - _letters(path)
    for family in FALLBACKS if missing else ():
        found = missing & _letters(_installed(family))
        if found:
            families.append(family)
            missing -= found
    return [missing.isdisjoint(name) for name in names], families


@cache
def _installed(family: str) -> str | None:
    """The file of a family, None where it is not installed; Matplotlib would log its absence, which is no news."""
    return next((font.fname for font in font_manager.fontManager.ttflist if font.name == family), None)


@cache
def _letters(path: str | None) -> frozenset[str]:
    """All letters of a font file."""
    return frozenset() if path is None else frozenset(map(chr, font_manager.get_font(path).get_charmap()))
