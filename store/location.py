"""Where the data of an installation is: a database, a folder, and perhaps a bucket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_OBJECT_URL = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{2,62})(/(?P<prefix>.*))?")


@dataclass(frozen=True)
class ObjectPlace:
    """Where blobs are in an object store."""

    bucket: str
    prefix: str  # "": the whole bucket

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_blob_url(url: str) -> ObjectPlace | None:
    """The place that a `blob_url` names; None for the folder in the data directory.

    Raises:
        ValueError: it names none; does not repeat the URL, which may hold a secret.
    """
    if not url:
        return None
    match = _OBJECT_URL.fullmatch(url)
    prefix = (match["prefix"] or "").removesuffix("/") if match else ""
    segments = prefix.split("/") if prefix else []
    if (
        match is None
        or any(segment in {"", ".", ".."} for segment in segments)
        or not prefix.isprintable()
        or {"?", "#", "@"} & set(prefix)
    ):
        raise ValueError(
            "it must be s3://BUCKET or s3://BUCKET/PREFIX, or be empty for a folder; "
            "credentials, region and endpoint come from AWS_* environment variables"
        )
    return ObjectPlace(match["bucket"], prefix)


def _checked(url: str) -> str:
    parse_blob_url(url)
    return url


def _without_secrets(url: object) -> object:
    """`url` as it may be shown; one without a secret is not changed, one with it is refused."""
    if not isinstance(url, str):
        return url
    return re.sub(r"\?.*", "?***", re.sub(r"//.*@", "//***@", url))


class StoreLocation(BaseSettings):
    """Settings that server and engine must agree on."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore")

    data_dir: Path = Field(
        Path("trunkline-data"), description="Folder of the file bytes and of the SQLite database."
    )
    database_url: str = Field(
        "",
        description="sqlite:///PATH or postgresql://USER@HOST/NAME; SQLite in the data folder "
        "unless given.",
    )
    # What an error message shows of a wrong value is what the last of these has made of it.
    blob_url: Annotated[str, AfterValidator(_checked), BeforeValidator(_without_secrets)] = Field(
        "",
        description="s3://BUCKET/PREFIX: where file bytes are kept, of this installation and no "
        "other; a folder in the data folder unless given. Credentials, region and endpoint come "
        "from AWS_* environment variables.",
    )

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'trunkline.db'}"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"
