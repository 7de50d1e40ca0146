"""Where the data of an installation is: one folder, and one database."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'trunkline.db'}"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"
