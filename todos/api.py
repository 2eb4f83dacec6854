"""The sample API: a person's todos, for whoever brings a token of that person. It reads the Authorization header only.

This is the protected resource that CAIR's tools call. It would work as well behind any other client: it knows an
issuer, an audience and its own scopes.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from uuid import UUID

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.request import UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import NinjaAPI, Status
from ninja.errors import HttpError, ValidationError
from ninja.security.base import AuthBase

from todos import bearer
from todos.billing import billing_of
from todos.models import Todo
from todos.owners import owner_for
from todos.shapes import (
    Billing,
    Health,
    NewTodo,
    OnlyDone,
    Problem,
    StrictJSON,
    TodoChanges,
    TodoList,
    TodoOut,
    UnsupportedMediaType,
)

logger = logging.getLogger(__name__)

REALM = "todos"
READ, WRITE, READ_BILLING = "read:todos", "write:todos", "read:billing"
_LONGEST_DESCRIPTION = 300
_DATABASE_RETRY_AFTER = 5


class Bearer(AuthBase):
    """The token of the request, proved, with the scopes that the operation needs."""

    openapi_type = "http"
    openapi_scheme = "bearer"
    openapi_bearerFormat = "JWT"

    def __init__(self, *scopes: str) -> None:
        super().__init__()
        self.scopes = frozenset(scopes)

    def __call__(self, request: HttpRequest) -> bearer.Principal:
        principal = bearer.verify_token(bearer.raw_token_of(request.headers.get("Authorization")))
        principal.require(self.scopes)
        return principal


api = NinjaAPI(
    title="Todos API",
    version="1.0",
    description="The sample API of CAIR: todos that belong to whoever the bearer token names.",
    docs_url=None,  # its page would load scripts from elsewhere
    docs_decorator=require_safe,
    urls_namespace="todos-api",
    parser=StrictJSON(),
)

_REFUSALS = {401: Problem, 503: Problem}
_SCOPED = {**_REFUSALS, 403: Problem}


# -- what it does ------------------------------------------------------------------------------------------------------


@api.get("/health", response=Health)
def health(request: HttpRequest) -> dict[str, str]:
    """Whether the service is alive. No token."""
    return {"status": "ok", "service": "todos"}


@api.get("/me", auth=Bearer(), response={200: dict[str, Any], **_REFUSALS})
def me(request: HttpRequest) -> Mapping[str, Any]:
    """The claims of the token, as they were proved."""
    return _principal(request).claims


@api.get("/todos", auth=Bearer(READ), response={200: TodoList, 400: Problem, **_SCOPED})
def list_todos(request: HttpRequest, done: OnlyDone = None) -> dict[str, Any]:
    """The owner's todos, oldest first; all, or only those done or not done. Scope: read:todos."""
    if len(request.GET.getlist("done")) > 1 or request.GET.keys() - {"done"}:
        # A misspelt filter must not answer with everything.
        raise bearer.InvalidRequest("The only parameter is done, true or false, once.")
    todos = Todo.objects.filter(owner=owner_for(_principal(request))).select_related("owner")
    return {"todos": todos if done is None else todos.filter(done=done)}


@api.post("/todos", auth=Bearer(WRITE), response={201: TodoOut, 400: Problem, 413: Problem, 415: Problem, **_SCOPED})
def create_todo(request: HttpRequest, todo: NewTodo) -> Status:
    """Make a todo. Scope: write:todos."""
    return Status(201, Todo.objects.create(owner=owner_for(_principal(request)), **todo.model_dump()))


@api.get("/todos/{uuid:todo_id}", auth=Bearer(READ), response={200: TodoOut, 404: Problem, **_SCOPED})
def get_todo(request: HttpRequest, todo_id: UUID) -> Todo:
    """One todo of the owner. Scope: read:todos."""
    return _todo_for(request, todo_id)


@api.patch(
    "/todos/{uuid:todo_id}",
    auth=Bearer(WRITE),
    response={200: TodoOut, 400: Problem, 404: Problem, 413: Problem, 415: Problem, **_SCOPED},
)
def update_todo(request: HttpRequest, todo_id: UUID, changes: TodoChanges) -> Todo:
    """Change what the body names, and nothing else. Scope: write:todos."""
    # Only the named columns are written: two edits of different fields at once both last.
    if named := changes.named():
        _todos_of(_principal(request)).filter(pk=todo_id).update(**named)
    return _todo_for(request, todo_id)


@api.delete("/todos/{uuid:todo_id}", auth=Bearer(WRITE), response={204: None, 404: Problem, **_SCOPED})
def delete_todo(request: HttpRequest, todo_id: UUID) -> Status:
    """Remove a todo for good. Scope: write:todos."""
    removed, _ = _todos_of(_principal(request)).filter(pk=todo_id).delete()
    if not removed:
        raise Http404
    return Status(204, None)


@api.get("/billing", auth=Bearer(READ_BILLING), response={200: Billing, **_SCOPED})
def billing(request: HttpRequest) -> dict[str, Any]:
    """What the owner pays. Scope: read:billing."""
    return billing_of(_principal(request))


def _principal(request: HttpRequest) -> bearer.Principal:
    return request.auth  # type: ignore[attr-defined]  # set by ninja to what Bearer gives


def _todos_of(principal: bearer.Principal) -> QuerySet[Todo]:
    return Todo.objects.filter(owner__issuer=principal.issuer, owner__subject=principal.subject)


def _todo_for(request: HttpRequest, todo_id: UUID) -> Todo:
    """The owner's todo. Somebody else's reads the same as none."""
    try:
        return _todos_of(_principal(request)).select_related("owner").get(pk=todo_id)
    except Todo.DoesNotExist:
        raise Http404 from None


# -- how it refuses ----------------------------------------------------------------------------------------------------


def refusal(status: int, error: str, description: str, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """Every answer that is not what was asked for has this form."""
    body = {"error": error, "error_description": description[:_LONGEST_DESCRIPTION]}
    return JsonResponse(body, status=status, headers=headers)


def _challenge(**parameters: str) -> dict[str, str]:
    """`WWW-Authenticate` as in RFC 6750 §3. The values are our own words: nothing in them needs quoting."""
    named = "".join(f', {name}="{value}"' for name, value in parameters.items())
    return {"WWW-Authenticate": f'Bearer realm="{REALM}"{named}'}


@api.exception_handler(bearer.NoToken)
def _no_token(request: HttpRequest, exc: Exception) -> HttpResponse:
    """> If the request lacks any authentication information … the resource server SHOULD NOT include an error code."""
    return refusal(401, "unauthorized", "Send a bearer token in the Authorization header.", _challenge())


@api.exception_handler(bearer.InvalidToken)
def _invalid_token(request: HttpRequest, exc: bearer.InvalidToken) -> HttpResponse:
    headers = _challenge(error="invalid_token", error_description=str(exc))
    return refusal(401, "invalid_token", str(exc), headers)


@api.exception_handler(bearer.InsufficientScope)
def _insufficient_scope(request: HttpRequest, exc: bearer.InsufficientScope) -> HttpResponse:
    scope = " ".join(sorted(exc.scopes))
    headers = _challenge(error="insufficient_scope", error_description=str(exc), scope=scope)
    return refusal(403, "insufficient_scope", f"The token lacks the scope {scope}.", headers)


@api.exception_handler(bearer.InvalidRequest)
def _invalid_request(request: HttpRequest, exc: Exception) -> HttpResponse:
    return refusal(400, "invalid_request", str(exc))


@api.exception_handler(bearer.IssuerUnavailable)
def _issuer_unavailable(request: HttpRequest, exc: bearer.IssuerUnavailable) -> HttpResponse:
    description = "The issuer's keys cannot be read now, so the token can be neither accepted nor refused."
    return refusal(503, "temporarily_unavailable", description, {"Retry-After": str(exc.retry_after)})


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
def _database_unavailable(request: HttpRequest, exc: Exception) -> HttpResponse:
    logger.error("the database does not answer: %s", exc.__class__.__name__)
    headers = {"Retry-After": str(_DATABASE_RETRY_AFTER)}
    return refusal(503, "temporarily_unavailable", "The database does not answer now.", headers)


@api.exception_handler(ValidationError)
def _invalid_fields(request: HttpRequest, exc: ValidationError) -> HttpResponse:
    """All that is wrong, field by field, in words that a person or a model can act on."""
    return refusal(400, "invalid_request", "; ".join(_in_words(error) for error in exc.errors))


def _in_words(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"][2:] or error["loc"][1:])
    return f"{where}: {error['msg']}"


@api.exception_handler(UnsupportedMediaType)
def _unsupported_media_type(request: HttpRequest, exc: Exception) -> HttpResponse:
    return refusal(415, "invalid_request", str(exc))


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, exc: HttpError) -> HttpResponse:
    """ninja wraps whatever the parser raises; what it has wrapped says more."""
    if isinstance(exc.__cause__, bearer.InvalidRequest | UnsupportedMediaType):
        return api.on_exception(request, exc.__cause__)
    return refusal(exc.status_code, "invalid_request", "The request cannot be understood.")


@api.exception_handler(RequestDataTooBig)
def _too_large(request: HttpRequest, exc: Exception) -> HttpResponse:
    return refusal(413, "invalid_request", "The body is too large.")


@api.exception_handler(SuspiciousOperation)
@api.exception_handler(UnreadablePostError)
def _unreadable(request: HttpRequest, exc: Exception) -> HttpResponse:
    return refusal(400, "invalid_request", "The request cannot be understood.")


@api.exception_handler(Http404)
def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return refusal(404, "not_found", "There is nothing here, or nothing of yours.")


@api.exception_handler(Exception)
def _unforeseen(request: HttpRequest, exc: Exception) -> HttpResponse:
    """Left to whoever serves us, whose log and audit share a trace id; ninja itself would show its story in DEBUG."""
    raise exc


def unforeseen(request: HttpRequest) -> HttpResponse:
    """The last resort of the service's own process: the log has the story, the answer its number."""
    number = secrets.token_hex(8)
    logger.error("unforeseen error %s", number, exc_info=True)
    return refusal(500, "server_error", f"Something went wrong here. Its number in the log is {number}.")


def _wrong_method(allowed: list[str]) -> HttpResponse:
    allow = ", ".join(sorted({*allowed, "HEAD"} if "GET" in allowed else allowed))
    return refusal(405, "method_not_allowed", f"This address takes {allow}.", {"Allow": allow})


def always_json(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """`view` with a JSON answer to a wrong method too, HEAD where there is GET, and nothing kept by any cache.

    No cookie is ever read here, so there is nothing that a forged form could ride on: CSRF checks do not apply.
    """

    @csrf_exempt
    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method == "HEAD":
            request.method = "GET"  # servers send no body to HEAD
        try:
            response = view(request, *args, **kwargs)
        except Http404:
            response = not_found(request)
        if isinstance(response, HttpResponseNotAllowed):
            response = _wrong_method(response.headers["Allow"].split(", "))
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return answer
