"""The commands that need no engine of their own process: `serve`, `server`, `demo`, `db`."""

from __future__ import annotations

import fcntl
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
import uvicorn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from trunkline.options import EXIT_BAD_CONFIG, ConfigError, with_options
from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings, ServeSettings
from trunkline.server.supervisor import EngineSupervisor
from trunkline.store.location import StoreLocation
from trunkline.store.migrate import upgrade

app = typer.Typer(no_args_is_help=True)
database_commands = typer.Typer(no_args_is_help=True, help="The database.")
app.add_typer(database_commands, name="db")

LOCATION_OPTIONS = ("data_dir", "database_url")
SERVER_OPTIONS = ("host", "port", "served_model_name", *LOCATION_OPTIONS)

# Connections that are still busy when the server stops are closed after that.
GRACEFUL_SECONDS = 10


class Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

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
            running.should_exit = True

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
    _upgrade(config)
    typer.echo("the database is up to date")


def _set_up(config: ServerSettings) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    _upgrade(config)


def _upgrade(location: StoreLocation) -> None:
    try:
        location.data_dir.mkdir(parents=True, exist_ok=True)
        upgrade(location.url)
    except (SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the database at {_without_password(location.url)} cannot be used: {reason}"
        ) from None


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"{url.partition('://')[0]}://***"  # where in it a password is cannot be told


def _make_server(config: ServerSettings, expected_models: tuple[str, ...]) -> Server:
    return Server(
        uvicorn.Config(
            create_app(config, expected_models),
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
        )
    )


def _stop_on_signals(running: Server) -> None:
    def stop(*_: object) -> None:
        running.should_exit = True

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
    return {"TRUNKLINE_DATABASE_URL": config.database_url} if config.database_url else {}


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
