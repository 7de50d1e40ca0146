"""Models: what an engine serves."""

from __future__ import annotations

from fastapi import APIRouter

from trunkline.server.errors import ApiError
from trunkline.server.scope import ScopeOf
from trunkline.server.state import StateOf
from trunkline.server.wire import ListObject, ModelObject, list_object, model_object

router = APIRouter(prefix="/v1/models")


@router.get("")
def list_models(state: StateOf, _: ScopeOf) -> ListObject[ModelObject]:
    models = [model_object(name, created) for name, created in state.models().items()]
    return list_object(models, has_more=False)


@router.get("/{model:path}")  # names such as "Qwen/Qwen3-0.6B" have a slash
def retrieve(model: str, state: StateOf, _: ScopeOf) -> ModelObject:
    created = state.models().get(model)
    if created is None:
        raise ApiError(404, f"The model '{model}' does not exist", "model", "model_not_found")
    return model_object(model, created)
