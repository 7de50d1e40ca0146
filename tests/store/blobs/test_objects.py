"""Blobs in S3: what is particular to them."""

from __future__ import annotations

import pickle
import re
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from trunkline.store.blobs import BlobStore, BlobsUnavailable
from trunkline.store.location import ObjectPlace
from trunkline.store.object_blobs import PART_BYTES, ObjectBlobs

ANY_AGE = -60.0


def store(blobs: BlobStore, data: bytes) -> str:
    with blobs.writer() as writer:
        writer.write(data)
        return writer.commit().key


def put(s3_server: Any, bucket: str, name: str) -> None:
    """An empty object that is not written as a blob."""
    httpx.put(f"{s3_server.url}/{bucket}/{name}").raise_for_status()


def test_other_objects_are_passed_over(bucket: str, s3_server: Any) -> None:
    blobs = ObjectBlobs(ObjectPlace(bucket, "p"))
    keys = [store(blobs, b"x") for _ in range(3)]
    for name in ("p/report.csv", f"p/{keys[0]}.part", f"p/more/{keys[0]}", f"q/{'ab' * 16}"):
        put(s3_server, bucket, name)
    assert sorted(blobs.list_keys(ANY_AGE)) == sorted(keys)


def test_prefixes_keep_blobs_apart(bucket: str) -> None:
    first, second = (ObjectBlobs(ObjectPlace(bucket, prefix)) for prefix in ("p", "p/p"))
    key = store(second, b"x")
    assert list(first.list_keys(ANY_AGE)) == []
    with pytest.raises(FileNotFoundError):
        first.open(key)


def test_more_blobs_than_a_page_are_listed(
    gateway: Any, gateway_blobs: ObjectBlobs, s3_server: Any, bucket: str
) -> None:
    gateway.max_keys = 20
    keys = [f"{number:032x}" for number in range(2 * gateway.max_keys + 1)]
    for key in keys:
        put(s3_server, bucket, key)
    assert sorted(gateway_blobs.list_keys(ANY_AGE)) == keys
    assert len(gateway.requests) == 3


def every(count: int, *statuses: int) -> Callable[[str], int | None]:
    """Each of the statuses for one request of `count`, again and again."""
    number = -1

    def fault(request: str) -> int | None:
        nonlocal number
        number += 1
        return statuses[number // count % len(statuses)] if number % count == 0 else None

    return fault


def test_a_store_that_is_busy_is_asked_again(gateway: Any, gateway_blobs: ObjectBlobs) -> None:
    """Throttled, broken, and without any answer."""
    gateway.fault = every(2, 503, 500, 429, 0)
    data = bytes(2 * PART_BYTES + 1)
    key = store(gateway_blobs, data)
    with gateway_blobs.open(key) as blob:
        assert blob.read() == data
    gateway_blobs.delete(key)
    assert list(gateway_blobs.list_keys(ANY_AGE)) == []
    assert len(gateway.requests) >= 12


@pytest.mark.parametrize("step", ["uploads=", "PUT", "uploadId"])
def test_an_upload_that_fails_leaves_nothing(
    gateway: Any, gateway_blobs: ObjectBlobs, s3_server: Any, bucket: str, step: str
) -> None:
    """When it begins, with a part, or when the parts are put together."""
    num_calls = 0

    def fault(request: str) -> int | None:
        nonlocal num_calls
        is_step = step in request and not request.startswith("DELETE")
        is_step &= step != "uploadId" or request.startswith("POST")
        num_calls += is_step
        return 403 if is_step else None

    gateway.fault = fault
    with pytest.raises(BlobsUnavailable, match="403"):
        store(gateway_blobs, bytes(5 * PART_BYTES))
    assert num_calls
    assert s3_server.keys(bucket) == set()


def test_reading_on_needs_few_requests(gateway: Any, gateway_blobs: ObjectBlobs) -> None:
    num_lines, line = 20_000, bytes(1000)
    key = store(gateway_blobs, line * num_lines)
    gateway.requests.clear()
    with gateway_blobs.open(key) as blob:
        for number in range(num_lines):
            blob.seek(number * len(line))
            assert len(blob.read(len(line))) == len(line)
    # One for the size; then 1/4, 1/2, 1, 2, 4, 4, 4 MiB, and the rest.
    assert len(gateway.requests) == 9
    gateway.requests.clear()
    with gateway_blobs.open(key) as blob:
        assert len(blob.read()) == num_lines * len(line)
    assert len(gateway.requests) == 6
    gateway.requests.clear()
    with gateway_blobs.open(key) as blob:
        blob.seek(num_lines // 2 * len(line))
        blob.read(len(line))
    assert len(gateway.requests) == 2


def failures(blobs: ObjectBlobs) -> list[BlobsUnavailable]:
    """What each call fails with."""
    caught = []
    calls: list[Callable[[], Any]] = [
        lambda: store(blobs, b"x"),
        lambda: store(blobs, bytes(PART_BYTES + 1)),
        lambda: blobs.open("ab" * 16),
        lambda: blobs.delete("ab" * 16),
        lambda: list(blobs.list_keys(0)),
        blobs.check,
    ]
    for call in calls:
        with pytest.raises(BlobsUnavailable) as failure:
            call()
        caught.append(failure.value)
    return caught


def test_a_missing_bucket_is_not_a_missing_blob(aws_environment: dict[str, str]) -> None:
    for error in failures(ObjectBlobs(ObjectPlace("no-such-bucket", "p"))):
        assert "s3://no-such-bucket/p cannot be reached" in str(error)
        assert "404, NoSuchBucket" in str(error)


def test_errors_are_short_and_show_no_secrets(
    gateway: Any, gateway_blobs: ObjectBlobs, aws_environment: dict[str, str]
) -> None:
    gateway.fault = lambda request: 403
    secrets = [value for name, value in aws_environment.items() if re.search("KEY|TOKEN", name)]
    for error in failures(gateway_blobs):
        shown = "".join(traceback.format_exception(error))
        assert "HTTP status 403" in shown
        assert len(secrets) == 3
        assert not [secret for secret in secrets if secret in shown]
        assert len(str(error)) < 150
        # It may come from another process.
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_blob_that_is_deleted_while_it_is_read_is_missing(object_blobs: ObjectBlobs) -> None:
    key = store(object_blobs, bytes(PART_BYTES))
    with object_blobs.open(key) as blob:
        blob.read(1)
        object_blobs.delete(key)
        with pytest.raises(FileNotFoundError, match=key):
            blob.read()


@pytest.mark.parametrize("status", [503, 0])
def test_a_check_does_not_wait_for_better_times(
    gateway: Any, gateway_blobs: ObjectBlobs, status: int
) -> None:
    gateway.fault = lambda request: status
    with pytest.raises(BlobsUnavailable, match="503" if status else "error"):
        gateway_blobs.check()
    assert len(gateway.requests) == 1


def test_missing_credentials_are_named(
    bucket: str, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # Where a machine in the cloud would ask for its role.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", gateway.url)
    gateway.fault = lambda request: 404
    with pytest.raises(BlobsUnavailable, match="no credentials; set AWS_ACCESS_KEY_ID"):
        ObjectBlobs(ObjectPlace(bucket, "")).check()
