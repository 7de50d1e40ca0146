"""`trunkline submit`: from a file on this disk to a batch on the server, and perhaps to its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trunkline.server.client.api import Api
from trunkline.server.client.display import byte_bar, clean
from trunkline.server.client.errors import ClientError, Refused, Unreachable, WrongUse
from trunkline.server.client.replies import Batch
from trunkline.server.client.upload import check_file, open_regular, send_file

# As the API has them.
MAX_METADATA = 16
MAX_KEY_CHARACTERS = 64
MAX_VALUE_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Submission:
    """What the new batch shall be.

    Attributes:
        path: the batch file.
        endpoint: of all its lines; None means the first line's.
        priority: None leaves it to the server.
    """

    path: Path
    endpoint: str | None
    metadata: Mapping[str, str]
    priority: int | None


def parse_metadata(pairs: list[str]) -> dict[str, str]:
    """Metadata from `key=value` pairs.

    Raises:
        WrongUse: one is malformed or too long, or there are too many.
    """
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise WrongUse(f"--metadata {pair!r} must be KEY=VALUE")
        if key in metadata:
            raise WrongUse(f"--metadata has the key {key!r} twice")
        if len(key) > MAX_KEY_CHARACTERS or len(value) > MAX_VALUE_CHARACTERS:
            raise WrongUse(
                f"--metadata {key[:MAX_KEY_CHARACTERS]}: the key has {len(key)} characters and the "
                f"value {len(value)}; at most {MAX_KEY_CHARACTERS} and {MAX_VALUE_CHARACTERS} are "
                "allowed"
            )
        metadata[key] = value
    if len(metadata) > MAX_METADATA:
        raise WrongUse(f"--metadata is given {len(metadata)} times; at most {MAX_METADATA}")
    return metadata


def submit(api: Api, submission: Submission, console: Console) -> Batch:
    """Check, upload and create.

    Raises:
        ClientError: no batch was created, or it cannot be told (then the message says so).
    """
    path = submission.path
    with open_regular(path) as file:
        num_bytes = path.stat().st_size
        with byte_bar(console, "checking", num_bytes) as bar:
            checked = check_file(
                file,
                str(path),
                submission.endpoint,
                lambda done: bar.update(bar.task_ids[0], completed=done),
            )
        # A wrong address or key shows before a large file is on its way.
        api.batches(1)
        with byte_bar(console, "uploading", checked.num_bytes) as bar:
            file_id = send_file(
                api,
                file,
                path.name,
                checked.num_bytes,
                lambda done: bar.update(bar.task_ids[0], completed=done),
            )
    body: dict[str, Any] = {
        "input_file_id": file_id,
        "endpoint": checked.endpoint,
        "completion_window": "24h",
        "metadata": dict(submission.metadata) or None,
    }
    if submission.priority is not None:
        body["priority"] = submission.priority
    try:
        # No other run has this file, so its id tells repetitions of this request from others.
        batch = api.create_batch(body, f"submit-{file_id}")
    except Refused as refused:
        if refused.status_code < 500:
            with suppress(ClientError):
                api.delete_file(file_id)
        raise
    except Unreachable as lost:
        raise Unreachable(
            f"{lost}, but see `trunkline status` first: there may be a batch of the file {file_id}"
        ) from None
    console.print(f"{clean(path.name)}: {checked.num_lines:,} lines for {checked.endpoint}")
    return batch
