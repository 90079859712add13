"""Weight files of the Hugging Face hub: found in its cache without a connection, else downloaded into it.

The download itself (progress, resume, locks between processes, atomic rename) is huggingface_hub's, which is imported
when it is first asked: a configuration is checked without it.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cl_prompts.backbones.records import HubFile
from cl_prompts.backbones.weight_checks import one_line
from cl_prompts.errors import BackboneError

SECONDS_TO_ANSWER = 5.0
"""How long the hub may take to say what it has, before it counts as out of reach."""


@dataclass(frozen=True)
class Hub:
    """A hub and a cache of its files.

    Attributes:
        cache: folder of the cache; None: huggingface_hub's own, which HF_HOME and HF_HUB_CACHE move.
        endpoint: address of the hub; None: huggingface_hub's own, which HF_ENDPOINT moves.
        quiet: show no progress.
    """

    cache: Path | None = None
    endpoint: str | None = None
    quiet: bool = False

    def cached(self, file: HubFile) -> Path | None:
        """The file where it lies in the cache, without asking the hub; None if it does not."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(file.repository, file.file, cache_dir=self.cache, revision=file.revision)
        return Path(found) if isinstance(found, str) else None

    def download(self, file: HubFile) -> Path:
        """Bring the file into the cache; a download that was cut short goes on where it stopped.

        Raises:
            BackboneError: out of reach, not there, no space; says how to get the file by hand.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        if self.offline:
            raise self.absent(file, "HF_HUB_OFFLINE forbids to ask the hub")
        try:
            # Asked first and once: the download itself tries again for half a minute before it says anything.
            url = hf_hub_url(file.repository, file.file, revision=file.revision, endpoint=self.endpoint)
            size = get_hf_file_metadata(url, timeout=SECONDS_TO_ANSWER, endpoint=self.endpoint).size
        except Exception as error:  # the library lets errors of its HTTP client through
            raise self.absent(file, f"the hub does not give it ({one_line(error)})") from error
        self._check_space(file, size or 0)
        if not self.quiet:
            # Hundreds of MB over a slow link: silence would look like a hang.
            megabytes = "" if size is None else f", {size / 1e6:,.0f} MB"
            print(f"downloading {file.file}{megabytes}, of {file.page} to {self.folder}", file=sys.stderr, flush=True)
        try:
            path = hf_hub_download(
                file.repository,
                file.file,
                revision=file.revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                tqdm_class=_silent_bar() if self.quiet else None,
            )
        except Exception as error:  # and those of the disk
            raise self.absent(file, f"the download failed ({one_line(error)})") from error
        return Path(path)

    def _check_space(self, file: HubFile, size: int) -> None:
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if free < size:
            raise BackboneError(
                f"backbone.checkpoint=hub: {file.file} of {file.repository} has {size / 1e6:,.0f} MB, but "
                f"{str(self.folder)!r} has room for {free / 1e6:,.0f} MB; make room, or move the cache with HF_HOME"
            )

    @property
    def offline(self) -> bool:
        """The user has forbidden connections, with HF_HUB_OFFLINE."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        from huggingface_hub import constants

        return self.cache or Path(constants.HF_HUB_CACHE)

    def absent(self, file: HubFile, reason: str) -> BackboneError:
        """The error for a file that is neither in the cache nor to be had; `reason` says why."""
        return BackboneError(
            f"backbone.checkpoint=hub: {file.file} of {file.repository} is not in the cache {str(self.folder)!r} and "
            f"{reason}; get it from {file.page} and set backbone.checkpoint=/path/to/{file.file}"
        )


def _silent_bar() -> type:
    from tqdm.auto import tqdm

    class SilentBar(tqdm):
        """A progress bar that shows nothing."""

        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **(keywords | {"disable": True}))

    return SilentBar
