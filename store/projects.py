"""Projects, which own everything that clients make, and the keys that open them."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import asdict

from sqlalchemy import Row, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from trunkline.store.database import Database, new_id
from trunkline.store.errors import NotFound
from trunkline.store.records import ApiKeyRecord, ProjectLimits, ProjectRecord
from trunkline.store.schema import api_keys, projects

# The project of those who come without a key. A migration makes it.
DEFAULT_PROJECT_ID = "proj_default"

KEY_PREFIX = "tl-"
HINT_CHARACTERS = 4
# How exact `last_used_at` is: reading with a key must not become writing with every request.
LAST_USED_SECONDS = 60

PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Projects:
    """All projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project_id: str) -> ProjectRecord:
        """The project.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(select(projects).where(projects.c.id == project_id)).first()
        if row is None:
            raise NotFound("project", project_id)
        return project_record(row)

    def by_name(self, name: str) -> ProjectRecord:
        """The project called `name`.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(select(projects).where(projects.c.name == name)).first()
        if row is None:
            raise NotFound("project", name)
        return project_record(row)

    def ensure(self, name: str, now: int) -> ProjectRecord:
        """The project called `name`, made if there is none.

        Raises:
            ValueError: a project cannot be called that.
        """
        if not PROJECT_NAME.fullmatch(name):
            raise ValueError(
                f"the project name {name!r} is not allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
                "beginning with a letter or a digit"
            )
        try:
            return self.by_name(name)
        except NotFound:
            pass
        try:
            with self._database.write() as connection:
                connection.execute(
                    insert(projects).values(id=new_id("proj_"), name=name, created_at=now)
                )
        except IntegrityError:  # somebody else has made it at the same time
            pass
        return self.by_name(name)

    def list(self) -> tuple[ProjectRecord, ...]:
        """All projects, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(projects).order_by(projects.c.name)).all()
        return tuple(map(project_record, rows))

    def set_limits(self, name: str, limits: ProjectLimits) -> ProjectRecord:
        """Replace the limits of the project called `name`.

        Raises:
            NotFound: there is none.
        """
        with self._database.write() as connection:
            connection.execute(
                update(projects).where(projects.c.name == name).values(**asdict(limits))
            )
        return self.by_name(name)


class ApiKeys:
    """All keys. Of a key only its hash is kept: it is long and random, so that a hash is enough."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, project_id: str, name: str, now: int) -> tuple[ApiKeyRecord, str]:
        """A new key of a project, and its text, which cannot be had again."""
        text = f"{KEY_PREFIX}{secrets.token_urlsafe(32)}"
        record = ApiKeyRecord(
            id=new_id("key_"),
            project_id=project_id,
            name=name,
            hint=text[-HINT_CHARACTERS:],
            created_at=now,
            last_used_at=None,
            revoked_at=None,
        )
        with self._database.write() as connection:
            connection.execute(insert(api_keys).values(**asdict(record), key_sha256=_digest(text)))
        return record, text

    def list(self) -> tuple[ApiKeyRecord, ...]:
        """All keys, the revoked ones too, by creation time."""
        query = select(*_KEY_COLUMNS).order_by(api_keys.c.created_at, api_keys.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(ApiKeyRecord(**row._mapping) for row in rows)

    def revoke(self, key_id: str, now: int) -> ApiKeyRecord:
        """Let a key open nothing any more, a second from now at the latest; cannot be undone.

        Raises:
            NotFound: there is none.
        """
        with self._database.write() as connection:
            connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            row = connection.execute(select(*_KEY_COLUMNS).where(api_keys.c.id == key_id)).first()
        if row is None:
            raise NotFound("key", key_id)
        return ApiKeyRecord(**row._mapping)

    def exist(self) -> bool:
        """Whether a key was ever made. Revoking the last one must not open the door to all."""
        with self._database.read() as connection:
            return bool(connection.execute(select(exists(select(api_keys.c.id)))).scalar())

    def project_of(self, text: str, now: int) -> ProjectRecord | None:
        """The project that the key `text` opens; None if it opens none."""
        query = (
            select(projects, api_keys.c.id.label("key_id"), api_keys.c.last_used_at)
            .join(api_keys)
            .where(api_keys.c.key_sha256 == _digest(text), api_keys.c.revoked_at.is_(None))
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        if row.last_used_at is None or row.last_used_at <= now - LAST_USED_SECONDS:
            # Nobody waits for a disk for this.
            with self._database.write(is_durable=False) as connection:
                connection.execute(
                    update(api_keys).where(api_keys.c.id == row.key_id).values(last_used_at=now)
                )
        return project_record(row)


_KEY_COLUMNS = tuple(column for column in api_keys.c if column.name != "key_sha256")


def project_record(row: Row[tuple[object, ...]]) -> ProjectRecord:
    return ProjectRecord(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        limits=ProjectLimits(
            max_queued_requests=row.max_queued_requests,
            max_queued_tokens=row.max_queued_tokens,
            max_requests_per_minute=row.max_requests_per_minute,
        ),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
