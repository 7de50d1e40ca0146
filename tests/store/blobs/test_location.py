"""The setting that says where blobs are."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from trunkline.options import ConfigError, resolve
from trunkline.store.blobs import DiskBlobs
from trunkline.store.location import ObjectPlace, StoreLocation, parse_blob_url
from trunkline.store.object_blobs import ObjectBlobs
from trunkline.store.open_blobs import open_blobs


@pytest.mark.parametrize(
    ("url", "place", "shown"),
    [
        ("s3://bucket", ObjectPlace("bucket", ""), "s3://bucket"),
        ("s3://bucket/", ObjectPlace("bucket", ""), "s3://bucket"),
        ("s3://my.bucket-1/a/b", ObjectPlace("my.bucket-1", "a/b"), "s3://my.bucket-1/a/b"),
        ("s3://bucket/größe/%41 b/", ObjectPlace("bucket", "größe/%41 b"), None),
    ],
)
def test_a_bucket_and_a_prefix(url: str, place: ObjectPlace, shown: str | None) -> None:
    assert parse_blob_url(StoreLocation(blob_url=url).blob_url) == place
    assert str(place) == (shown or url.removesuffix("/"))


@pytest.mark.parametrize(
    "url",
    [
        "bucket",
        "s3:/bucket",
        "s3://",
        "s3://a",
        "s3:///prefix",
        "gs://bucket",
        "https://bucket.s3.amazonaws.com",
        "s3://bucket//prefix",
        "s3://bucket/a/../b",
        "s3://bucket/a\nb",
        "s3://bucket/a?region=x",
        "s3://bucket/a#b",
        "s3://bucket/a@b",
        "s3://bücket/a",
        " s3://bucket",
    ],
)
def test_whatever_else_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be s3://BUCKET or s3://BUCKET/PREFIX"):
        parse_blob_url(url)
    monkeypatch.setenv("TRUNKLINE_BLOB_URL", url)
    with pytest.raises(ConfigError, match=r"^TRUNKLINE_BLOB_URL is .*must be s3://BUCKET"):
        resolve(StoreLocation)


@pytest.mark.parametrize(
    "url", ["s3://key:hidden@bucket/p", "s3://key:hid/hidden@bucket", "s3://bucket/p?secret=hidden"]
)
def test_a_refusal_shows_no_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--blob-url is .*\*\*\*.*AWS_") as refusal:
        resolve(StoreLocation, blob_url=url)
    assert "hidden" not in str(refusal.value)
    with pytest.raises(ValidationError) as error:
        StoreLocation(blob_url=url)
    assert "hidden" not in str(error.value)


def test_blobs_are_in_the_data_folder_unless_a_url_is_given(
    tmp_path: Path, aws_environment: dict[str, str]
) -> None:
    assert isinstance(open_blobs(StoreLocation(data_dir=tmp_path)), DiskBlobs)
    assert (tmp_path / "blobs").is_dir()
    other = tmp_path / "other"
    assert isinstance(
        open_blobs(StoreLocation(data_dir=other, blob_url="s3://bucket/p")), ObjectBlobs
    )
    assert not other.exists()
