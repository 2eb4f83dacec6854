"""The JSON that goes in and out: its types, its limits, and how it is read. The OpenAPI document is made from these."""

import json
import re
from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

from django.http import HttpRequest
from ninja import Schema
from ninja.parser import Parser
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from todos.bearer import InvalidRequest
from todos.models import Todo

_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class UnsupportedMediaType(Exception):
    """The body says it is something other than JSON."""


def _iso_date(value: Any) -> Any:
    """`2026-11-20` and nothing else: left alone, pydantic takes numbers for moments since 1970."""
    if value is None or isinstance(value, date):
        return value
    if not isinstance(value, str) or not _ISO_DATE.fullmatch(value):
        raise ValueError("must be a date such as 2026-11-20")
    return date.fromisoformat(value)


def _plain_boolean(value: Any) -> Any:
    """`true` or `false`, as a query string spells them."""
    return {"true": True, "false": False}.get(value, value)


# Control characters are in no title that a person wrote; PostgreSQL cannot store NUL at all.
Title = Annotated[
    str,
    Field(
        min_length=1,
        max_length=Todo._meta.get_field("title").max_length,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        description="What is to be done, in one line.",
        examples=["Water the plants"],
    ),
]
Description = Annotated[
    str,
    Field(
        max_length=Todo._meta.get_field("description").max_length,
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$",
        description="More about it; lines are allowed.",
        examples=["The ones on the balcony too."],
    ),
]
Due = Annotated[
    date | None,
    BeforeValidator(_iso_date),
    Field(description="The day it is due (ISO 8601), or null.", examples=["2026-11-20"]),
]
Done = Annotated[bool, Field(description="Whether it is done.", examples=[False])]
OnlyDone = Annotated[StrictBool | None, BeforeValidator(_plain_boolean)]


class NewTodo(BaseModel):
    """A todo to be made."""

    model_config = ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)

    title: Title
    description: Description = ""
    due: Due = None
    done: Done = False


class TodoChanges(BaseModel):
    """What is to change of a todo; what is not named stays."""

    model_config = ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)

    # Factories, because absent is not null: the values they make are never used.
    title: Title = Field(default_factory=str)
    description: Description = Field(default_factory=str)
    due: Due = None
    done: Done = Field(default_factory=bool)

    def named(self) -> dict[str, Any]:
        """Only the fields that the request named."""
        return self.model_dump(exclude_unset=True)


class TodoOut(Schema):
    """A todo as its owner sees it."""

    id: UUID
    title: str
    description: str
    due: date | None
    done: bool
    created: datetime
    owner: str

    @staticmethod
    def resolve_owner(todo: Todo) -> str:
        return todo.owner.subject


class TodoList(Schema):
    """The owner's todos, oldest first."""

    todos: list[TodoOut]


class Invoice(Schema):
    number: str
    issued: date
    amount: str
    paid: bool


class Billing(Schema):
    """What the owner pays for this service."""

    owner: str
    plan: str
    currency: str
    amount: str
    card: str
    next_invoice: date
    invoices: list[Invoice]


class Health(Schema):
    status: str
    service: str


class Problem(Schema):
    """Every refusal and failure."""

    error: str
    error_description: str


class StrictJSON(Parser):
    """JSON that means one thing: UTF-8, no name twice in an object, no NaN."""

    def parse_body(self, request: HttpRequest) -> Any:
        if request.content_type != "application/json":
            raise UnsupportedMediaType("Send the body as application/json.")
        try:
            body = json.loads(
                request.body.decode("utf-8"), object_pairs_hook=_without_repetition, parse_constant=_no_number
            )
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("The body is not valid JSON.") from error
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object.")
        return body


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two parsers may disagree which of two equal names counts, so neither does (T32)."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise InvalidRequest("The body names a field twice.")
    return dict(pairs)


def _no_number(name: str) -> Any:
    raise ValueError(name)
