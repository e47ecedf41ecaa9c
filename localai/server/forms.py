"""What requests of both forms of the API look like in common: plain values, checked by type and by range."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
KeepAlive = str | float | int | None
MOST_TOKENS = 2**31 - 1
Tokens = Annotated[int | None, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[float | None, Field(ge=-10, le=10)]
Share = Annotated[float | None, Field(ge=0, le=1)]


FAILURES: dict[int | str, Json] = {
    "4XX": {"description": "What is wrong with the request, in the form's own way of telling errors"},
    "5XX": {"description": "What goes wrong here: no memory, a model that was let go of"},
}  # for /openapi.json


def streams(media_type: str) -> dict[int | str, Json]:
    """For /openapi.json: that the answer may come in pieces."""
    return {200: {"content": {media_type: {}}}}


class Form(BaseModel):
    """The body of a request, or a part of it. What it has beside is let be: clients send more than anybody reads."""

    model_config = ConfigDict(extra="allow")


class Said(Form):
    """A turn of a conversation, as far as both forms tell it alike."""

    role: str
    name: str | None = None
    tool_calls: list[Json] | None = None
    tool_call_id: str | None = None


class Drawing(Form):
    """How tokens are drawn and where the answer ends; None leaves it to the settings and the model's makers."""

    temperature: Annotated[float | None, Field(ge=0, le=10)] = None
    top_p: Share = None
    top_k: Annotated[int | None, Field(ge=0, le=MOST_TOKENS)] = None
    min_p: Share = None
    repeat_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    seed: int | None = None
    stop: str | list[str] | None = None
