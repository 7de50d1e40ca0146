"""Blobs in a folder: what is particular to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from trunkline.store.blobs import BlobsUnavailable, DiskBlobs

DAY_SECONDS = 86_400


def test_only_blobs_are_listed(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    names = ["ab" * 16, "ab" * 16 + ".part", "abandoned", "AB" * 16]
    (tmp_path / "ab").mkdir()
    for name in names:
        path = tmp_path / "ab" / name
        path.touch()
        os.utime(path, (0, path.stat().st_mtime - 2 * DAY_SECONDS))
    (tmp_path / ("cd" * 16)).touch()
    assert list(blobs.list_keys(DAY_SECONDS)) == [names[0]]
    assert list(blobs.list_keys(3 * DAY_SECONDS)) == []


def test_a_folder_that_is_gone_is_noticed(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path / "blobs")
    blobs.check()
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(BlobsUnavailable, match="there is no folder"):
        blobs.check()


def test_a_folder_that_cannot_be_written_to_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The superuser may write everywhere: what the system says is put into its mouth.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(BlobsUnavailable, match="cannot be written to"):
        DiskBlobs(tmp_path).check()
