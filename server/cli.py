"""The commands that need no engine of their own process: `serve`, `server`, `demo`, `db`."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
import uvicorn

from trunkline import logs, tracing
from trunkline.options import EXIT_BAD_CONFIG, ConfigError, with_options
from trunkline.server.access import is_loopback
from trunkline.server.app import create_app
from trunkline.server.opening import migrate, opened
from trunkline.server.settings import ServerSettings, ServeSettings
from trunkline.server.supervisor import EngineSupervisor
from trunkline.store.blobs import BlobsUnavailable
from trunkline.store.location import StoreLocation
from trunkline.store.open_blobs import open_blobs
from trunkline.store.projects import ApiKeys

app = typer.Typer(no_args_is_help=True)
database_commands = typer.Typer(no_args_is_help=True, help="The database.")
app.add_typer(database_commands, name="db")

LOCATION_OPTIONS = ("data_dir", "database_url", "blob_url")
SERVER_OPTIONS = ("host", "port", "served_model_name", "allow_anonymous", *LOCATION_OPTIONS)

# Connections that are still busy when the server stops are closed after that.
GRACEFUL_SECONDS = 10


class Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def stop(self) -> None:
        """End soon: streams that would go on are told."""
        self._stopping.set()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@app.command()
@with_options(ServerSettings, *SERVER_OPTIONS)
def server(config: ServerSettings) -> None:
    """The API server alone; engines run elsewhere on the same database."""
    _set_up(config)
    expected = (config.served_model_name,) if config.served_model_name else ()
    running = _make_server(config, expected)
    _stop_on_signals(running)
    running.run()


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@with_options(ServeSettings, "model", "device", *SERVER_OPTIONS)
def serve(config: ServeSettings, context: typer.Context) -> None:
    """The API server and an engine on this machine.

    Options of `trunkline engine` that are not listed here are passed on to the engine.
    """
    with _lock(config.data_dir):
        # The lock makes names unique that are made of the folder's. After a restart they are the
        # same, and what their former bearers had claimed is taken over at once.
        config = config.model_copy(update={"server_name": f"server-of-{config.data_dir.resolve()}"})
        _set_up(config)
        running = _make_server(config, (config.served_name,))
        has_bad_config = False

        def give_up() -> None:
            nonlocal has_bad_config
            has_bad_config = True
            running.stop()

        supervisor = EngineSupervisor(
            [*_engine_arguments(config), *context.args], _engine_environment(config), give_up
        )
        _stop_on_signals(running)
        supervisor.start()
        try:
            running.run()
        finally:
            supervisor.stop()
        if has_bad_config:
            raise typer.Exit(EXIT_BAD_CONFIG)


@app.command()
@with_options(ServeSettings, "model", "device")
def demo(config: ServeSettings) -> None:
    """Answer a sample batch on this machine, from start to end, and show what happens."""
    # The official client takes a second to import, and no other command needs it.
    from trunkline.server.demo.run import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(config))


@database_commands.command("upgrade")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def upgrade_database(config: StoreLocation) -> None:
    """Bring the database to the current schema."""
    migrate(config)
    typer.echo("the database is up to date")


def _set_up(config: ServerSettings) -> None:
    logs.configure("server", config.log_level, config.log_format)
    tracing.configure("server")
    migrate(config)
    try:
        open_blobs(config).check()
    except BlobsUnavailable as error:
        raise ConfigError(str(error)) from None
    _check_exposure(config)


def _check_exposure(config: ServerSettings) -> None:
    """Raise ConfigError if strangers could use this server without a key."""
    if config.allow_anonymous or is_loopback(config.host):
        return
    with opened(config) as database:
        if ApiKeys(database).exist():
            return
    raise ConfigError(
        f"--host {config.host} can be reached from other machines, and there is no API key yet: "
        "make one with `trunkline keys create --project NAME`, or serve everybody with "
        "--allow-anonymous"
    )


def _make_server(config: ServerSettings, expected_models: tuple[str, ...]) -> Server:
    stopping = threading.Event()
    return Server(
        uvicorn.Config(
            create_app(config, expected_models, stopping),
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
        ),
        stopping,
    )


def _stop_on_signals(running: Server) -> None:
    def stop(*_: object) -> None:
        running.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _engine_arguments(config: ServeSettings) -> list[str]:
    return [
        *("--model", config.model),
        *("--served-model-name", config.served_name),
        *("--device", config.device),
        *("--data-dir", str(config.data_dir)),
        *("--engine-name", f"engine-of-{config.data_dir.resolve()}"),
    ]


def _engine_environment(config: ServeSettings) -> dict[str, str]:
    # The URL may hold a password, and everyone on the machine can read a process's arguments.
    given = {
        "TRUNKLINE_DATABASE_URL": config.database_url,
        "TRUNKLINE_BLOB_URL": config.blob_url,
    }
    return {name: value for name, value in given.items() if value}


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process.

    Raises:
        ConfigError: another `trunkline serve` holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "serve.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another `trunkline serve` runs on {data_dir}; stop it, or give --data-dir"
            ) from None
        yield
