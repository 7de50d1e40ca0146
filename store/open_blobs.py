"""Opens the blobs of an installation, wherever they are."""

from __future__ import annotations

from trunkline.store.blobs import BlobStore, DiskBlobs
from trunkline.store.location import StoreLocation, parse_blob_url
from trunkline.store.object_blobs import ObjectBlobs


def open_blobs(location: StoreLocation) -> BlobStore:
    """The blob store of `location`. Does not say whether it can be reached: see its `check`."""
    place = parse_blob_url(location.blob_url)
    return DiskBlobs(location.blobs_dir) if place is None else ObjectBlobs(place)
