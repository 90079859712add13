"""Records of official files, and how a data set comes to have them: found, unpacked or downloaded.

A hash that a record does not state is pinned when the file is first seen, see `scenarios.pins`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scenarios._archives import Limits, unpack, verify
from scenarios._downloads import RemoteFile, Wish, cannot_use, fetch, require_space
from scenarios._locks import locked
from scenarios.errors import DataError


def data_root(root: str | None) -> Path:
    """Folder of the official files: `dataset.root`, else the user's data folder."""
    if root is not None:
        return Path(root).expanduser()
    from platformdirs import user_data_path

    return user_data_path("cl_prompts", appauthor=False)


@dataclass(frozen=True)
class Official:
    """The official files of a data set and what they become on disk.

    Attributes:
        name: the word after `dataset=`.
        files: archives, or files that are read as they are; none where a user has to bring the tree.
        tree: what the root holds once everything is there, in words.
        missing: the first thing of the data set that is not below the root; None where all is there.
        images: official number of images of each part.
        folder: where the files lie, relative to the root.
        limits: what an archive may become; None where files are read as they are.
        unpacked_bytes: space that the unpacked content needs.
        page: where a user finds files of which no address is certain, in words.
    """

    name: str
    files: tuple[RemoteFile, ...]
    tree: str
    missing: Callable[[Path], Path | None]
    images: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""
    limits: Limits | None = None
    unpacked_bytes: int = 0
    page: str = ""

    def place(self, root: Path) -> Path:
        """Folder of the files."""
        return root / self.folder

    def pin_key(self, file: RemoteFile) -> str:
        """Key of the pin of one of the files."""
        return f"dataset/{self.name}/{file.name}"

    def by_hand(self, root: Path) -> str:
        """What to do without this program, an order: files, hashes, addresses, place, expected tree."""
        if not self.files:
            return f"put {self.tree} into {root}, from {self.page}"
        sources = (f"{file.words} from {file.url or self.page}" for file in self.files)
        use = f"; unpacked, {root} holds" if self.limits is not None else f"; {root} then holds"
        return f"get {' and '.join(sources)} and put it into {self.place(root)}{use} {self.tree}"

    def require(self, root: Path, *, download: bool) -> None:
        """Refuse at once what is neither there nor to be had.

        Raises:
            DataError: something is missing and cannot be made from files in the folder or be downloaded.
        """
        missing = self.missing(root)
        if missing is None:
            return
        absent = [file for file in self.files if not (self.place(root) / file.name).is_file()]
        uncertain = [file for file in absent if file.url is None]
        if self.files and not uncertain and (download or not absent):
            return
        advice = self.by_hand(root)
        if uncertain or not self.files:
            advice = f"no address of it is certain: {advice}"
        else:
            advice = f"set dataset.download=true, or {advice}"
        raise DataError(
            f"dataset={self.name}: {missing} is missing; {advice}, or point dataset.root at the folder that holds it"
        )

    def provide(self, root: Path, *, download: bool) -> None:
        """Make sure that everything is below the root: unpack what is in the folder, download what is not.

        Nothing is read and no connection opened where everything is there already.

        Raises:
            DataError: not there and not allowed or not possible to download, damaged, no space, not writable.
        """
        self.require(root, download=download)
        if self.missing(root) is None:
            return
        paths = [self.verified(file, root) for file in self.files]
        if self.limits is not None:
            self._unpack(paths, root)
        missing = self.missing(root)
        if missing is not None:
            names = " and ".join(file.name for file in self.files)
            raise DataError(f"dataset={self.name}: {missing} is not in {names}; {self.by_hand(root)}")

    def verified(self, file: RemoteFile, root: Path) -> Path:
        """One of the files, fetched where it is missing and compared with its record or pin.

        Raises:
            DataError: see `scenarios._downloads.fetch`.
        """
        limits, advice = self.limits, self.advice(root)
        wish = Wish(
            owner=f"dataset={self.name}",
            pin_key=self.pin_key(file),
            by_hand=self.by_hand(root),
            room=self.unpacked_bytes,
            accept=None if limits is None else lambda path: verify(path, limits, advice=advice),
        )
        return fetch(file, self.place(root), wish)

    def advice(self, root: Path) -> str:
        """What to do about something damaged, an order."""
        return f"delete it and run again with dataset.download=true, or {self.by_hand(root)}"

    def _unpack(self, archives: list[Path], root: Path) -> None:
        assert self.limits is not None
        try:
            with locked(root / f".{self.name}.lock", purpose=f"unpacking {self.name} in {root}"):
                if self.missing(root) is not None:  # another process may have unpacked meanwhile
                    require_space(f"dataset={self.name}", root, self.unpacked_bytes)
                    unpack(archives, root, self.limits, advice=self.advice(root))
        except OSError as error:
            raise cannot_use(f"dataset={self.name}", root, error) from error


def first_missing(*paths: str) -> Callable[[Path], Path | None]:
    """A function that gives the first of these paths, relative to a root, that does not exist there."""

    def missing(root: Path) -> Path | None:
        return next((root / path for path in paths if not (root / path).exists()), None)

    return missing
