"""How much of a project's work may wait at once.

What is queued is not counted up and down but summed over the batches that run: an answered line,
a cancelled batch and a crash give back what they held without anybody's doing.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from trunkline.store.projects import project_record
from trunkline.store.records import LineError
from trunkline.store.schema import batches, projects
from trunkline.store.states import BatchStatus

CODE = "token_limit_exceeded"


def over_quota(
    connection: Connection, project_id: str, model: str, num_requests: int, num_tokens: int
) -> LineError | None:
    """What forbids the project to queue so much more; None: nothing.

    The project stays locked until the transaction ends, so that two batches which are accepted
    at once cannot both take what is left.
    """
    row = connection.execute(
        select(projects).where(projects.c.id == project_id).with_for_update()
    ).one()
    project = project_record(row)
    limits = project.limits
    if limits.max_queued_requests is None and limits.max_queued_tokens is None:
        return None
    num_open = batches.c.num_total - batches.c.num_completed - batches.c.num_failed
    queued_requests, queued_tokens = connection.execute(
        select(
            func.coalesce(func.sum(num_open), 0),
            func.coalesce(func.sum(batches.c.num_estimated_tokens * num_open / _TOTAL), 0),
        ).where(batches.c.project_id == project_id, batches.c.status == BatchStatus.IN_PROGRESS)
    ).one()
    for limit, queued, more, kind in (
        (limits.max_queued_requests, int(queued_requests), num_requests, "request"),
        (limits.max_queued_tokens, int(queued_tokens), num_tokens, "token"),
    ):
        if limit is not None and queued + more > limit:
            return LineError(
                CODE,
                f"Enqueued {kind} limit reached for {model} in project {project.name}. Limit: "
                f"{limit:,} enqueued {kind}s; {queued:,} are enqueued and this batch has "
                f"{more:,}. Please try again once some in_progress batches have been completed.",
                None,
                None,
            )
    return None


# A batch in progress has at least one line.
_TOTAL = func.nullif(batches.c.num_total, 0)
