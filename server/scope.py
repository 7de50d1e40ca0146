"""What a request may see: the objects of the project that its key opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from trunkline.logs import add_log_fields
from trunkline.server.state import StateOf
from trunkline.store.batches import Batches
from trunkline.store.files import Files
from trunkline.store.records import ProjectRecord
from trunkline.store.uploads import Uploads
from trunkline.store.webhooks import WebhookEndpoints


@dataclass(frozen=True)
class Scope:
    """One project's objects. Those of others are not there, as if nobody had made them."""

    project: ProjectRecord
    files: Files
    batches: Batches
    uploads: Uploads
    webhook_endpoints: WebhookEndpoints


async def _scope(request: Request, state: StateOf) -> Scope:
    """Raises ApiError when the request has no valid key, or there were too many."""
    project = await state.access.project(request.headers, state.now())
    # Ids are as short as this; what else stands there is a client's invention.
    ids = {
        name: str(value)[:64] for name, value in request.path_params.items() if name.endswith("_id")
    }
    add_log_fields(project_id=project.id, **ids)
    database = state.database
    return Scope(
        project=project,
        files=Files(database, project.id),
        batches=Batches(database, project.id),
        uploads=Uploads(database, project.id),
        webhook_endpoints=WebhookEndpoints(database, project.id),
    )


ScopeOf = Annotated[Scope, Depends(_scope)]
