"""Every setting of the server: one table, resolved once, frozen."""

from __future__ import annotations

import os
import socket

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from trunkline.logs import LogSettings
from trunkline.store.location import StoreLocation
from trunkline.store.model_names import DEFAULT_MODEL, served_name

MIB = 1024 * 1024
DAY_SECONDS = 86_400


class ServerSettings(LogSettings, StoreLocation):
    """How the server runs. Units are in the names: bytes, seconds."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0: any free one.")
    max_file_bytes: int = Field(512 * MIB, ge=1, description="Largest upload. Bytes.")
    max_batch_file_bytes: int = Field(
        200 * MIB, ge=1, description="Largest input file of a batch. Bytes."
    )
    max_batch_requests: int = Field(50_000, ge=1, description="Most lines in a batch.")
    batch_file_expires_seconds: int = Field(
        30 * DAY_SECONDS, ge=1, description="Life of an uploaded batch file. Seconds."
    )
    output_expires_seconds: int = Field(
        30 * DAY_SECONDS, ge=1, description="Life of output and error files. Seconds."
    )
    window_seconds: int = Field(
        DAY_SECONDS, ge=1, description='What a completion window of "24h" means. Seconds.'
    )
    served_model_name: str | None = Field(
        None,
        description="Name that requests use for the model. `serve`: the model's own name unless "
        "given. `server`: requests for it are accepted before its engine has started.",
    )
    server_name: str = Field(
        default_factory=lambda: f"server-{socket.gethostname()}-{os.getpid()}",
        description="Name of this server in the store; must differ between servers.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Serve requests without an API key, in the project `default`, wherever they "
        "come from. Without this, a server that has no keys listens on this machine only.",
    )
    max_upload_bytes: int = Field(
        8 * 1024 * MIB, ge=1, description="Largest file that is uploaded in parts. Bytes."
    )
    upload_expires_seconds: int = Field(
        3600, ge=1, description="An upload in parts must be completed within this time. Seconds."
    )
    webhook_timeout_seconds: float = Field(
        10.0, gt=0, description="A webhook endpoint must answer within this time."
    )
    webhook_allow_private_addresses: bool = Field(
        False,
        description="Deliver webhooks to private and loopback addresses and over plain http too.",
    )
    server_lease_seconds: float = Field(
        60.0,
        gt=0,
        description="A batch being validated or finalized is free again so long after the "
        "server's last sign of life.",
    )
    server_poll_seconds: float = Field(
        0.5, gt=0, description="Pause between two looks for batches to validate or finalize."
    )
    engine_alive_seconds: float = Field(
        30.0, gt=0, description="An engine counts as alive so long after its last heartbeat."
    )
    live_timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="A request whose client waits for the answer ends with an error after this "
        "time.",
    )


class ServeSettings(ServerSettings):
    """Settings of `trunkline serve`, which starts an engine too."""

    model: str = Field(
        DEFAULT_MODEL,
        description="Model: the embedded default's name, a Hugging Face id, a folder with "
        "safetensors, or a .gguf file.",
    )
    device: str = Field("auto", description="Where the model runs: auto, cpu or cuda.")

    @property
    def served_name(self) -> str:
        return self.served_model_name or served_name(self.model)
