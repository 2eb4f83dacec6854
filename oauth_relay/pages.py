"""Pages that say what went wrong and what to do; JSON in RFC 6749 form where a program asked."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt

from oauth_relay.browsers import person_context, signed_in_person
from oauth_relay.database import DATABASE_AWAY
from oauth_relay.traces import trace_id

logger = logging.getLogger(__name__)

PROTOCOL_PATHS = (
    "/token",
    "/register",
    "/revoke",
    "/introspect",
    "/backchannel-logout",
    "/.well-known/",
    "/api/",
    "/mcp",
    "/sse",
    "/messages/",
)
RETRY_AFTER = "5"


@dataclass(frozen=True)
class Link:
    """Where a person may go on by their own click: address, words, and the host shown beside it."""

    href: str
    text: str
    host: str


def refusal(
    request: HttpRequest, status: int, title: str, what: str, repair: str, link: Link | None = None
) -> HttpResponse:
    """A page for a person: what happened, what to do, and the trace id for whoever helps them."""
    context = {
        "page_title": title,
        "title": title,
        "what": what,
        "repair": repair,
        "link": link,
        "status": status,
        "trace_id": trace_id.get(),
    }
    return render(request, "oauth_relay/refusal.html", context, status=status)


def is_for_a_program(request: HttpRequest) -> bool:
    return request.path.startswith(PROTOCOL_PATHS)


def oauth_error(error: str, description: str, status: int = 400, headers: dict[str, str] | None = None) -> JsonResponse:
    """> The parameters are included in the entity-body of the HTTP response using "application/json". (RFC 6749 §5.2)"""
    response = JsonResponse({"error": error, "error_description": description}, status=status, headers=headers)
    response["Cache-Control"] = "no-store"
    return response


def read_only(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """A view that programs read: any other method is told so in JSON. Nothing to forge, so no form token is asked for."""

    @csrf_exempt
    @wraps(view)
    def read(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method not in ("GET", "HEAD"):
            return oauth_error("invalid_request", "This can only be read.", 405, {"Allow": "GET, HEAD"})
        return view(request, *args, **kwargs)

    return read


def _failure(request: HttpRequest, status: int, error: str, title: str, what: str, repair: str) -> HttpResponse:
    if is_for_a_program(request):
        return oauth_error(error, f"{what} {repair}", status)
    return refusal(request, status, title, what, repair)


# -- handlers named in cair.urls and settings --------------------------------------------------------------------------


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    what = "The request could not be read."
    return _failure(request, 400, "invalid_request", "That did not work", what, "Go back and try again.")


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    what = "This is not open to you."
    return _failure(
        request, 403, "access_denied", "Not allowed", what, "Sign in with another account, or ask an operator."
    )


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    if request.path.rstrip("/") in ("/mcp", "/sse"):
        what = f"The MCP endpoint is {settings.PUBLIC_URL}{request.path.rstrip('/')}, without a slash at its end."
        return oauth_error("not_found", what, 404)
    what = "There is nothing at this address."
    return _failure(request, 404, "not_found", "Not found", what, "Check the address; CAIR's own pages start at /.")


def form_expired(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's CSRF check failed: mostly an old tab, sometimes somebody else's page."""
    logger.info("CSRF check failed: %s", reason)
    what = "This form is no longer valid, so nothing was changed."
    return refusal(request, 403, "Please try again", what, "Load the page again and repeat what you wanted to do.")


def unforeseen(request: HttpRequest) -> HttpResponse:
    """Anything nobody thought of; and the database being away, which somebody did (DESIGN §8)."""
    if isinstance(sys.exc_info()[1], DATABASE_AWAY):
        what, repair = "CAIR cannot reach its database at the moment.", "Wait some seconds and try again."
        if is_for_a_program(request):
            return oauth_error("temporarily_unavailable", f"{what} {repair}", 503, {"Retry-After": RETRY_AFTER})
        response = _bare_page(503, "Back in a moment", what, repair)
        response["Retry-After"] = RETRY_AFTER
        return response
    what = "Something failed here."
    if is_for_a_program(request):
        return oauth_error("server_error", f"{what} The operator can find it under {trace_id.get()}.", 500)
    return _bare_page(500, "Something failed", what, "Try again. If it fails again, ask the operator.")


def _bare_page(status: int, title: str, what: str, repair: str) -> HttpResponse:
    """A page drawn without asking who is signed in: the database may be what is missing."""
    from django.template.loader import render_to_string

    context = {
        "page_title": title,
        "title": title,
        "what": what,
        "repair": repair,
        "status": status,
        "trace_id": trace_id.get(),
    }
    return HttpResponse(render_to_string("oauth_relay/refusal.html", context), status=status)


# -- the front page, and whether we are alive --------------------------------------------------------------------------


@csrf_exempt
def home(request: HttpRequest) -> HttpResponse:
    """What this is, and the lines to paste into each client."""
    mcp_url, sse_url = settings.RESOURCES
    if request.method not in ("GET", "HEAD"):  # a client whose address lacks its last part
        said = f"This is a page. The MCP endpoint is {mcp_url}."
        return oauth_error("invalid_request", said, 405, {"Allow": "GET, HEAD"})
    context = {
        "page_title": "CAIR",
        "public_url": settings.PUBLIC_URL,
        "mcp_url": mcp_url,
        "sse_url": sse_url,
        "person": person_context(signed_in_person(request)),
        "clients": how_to_connect(mcp_url),
    }
    return render(request, "oauth_relay/home.html", context)


def how_to_connect(mcp_url: str) -> list[dict[str, str]]:
    """Name, kind of line, and the line itself, for each client people use."""
    return [
        {"name": "Claude Code", "how": "in a terminal", "line": f"claude mcp add --transport http cair {mcp_url}"},
        {
            "name": "Cursor",
            "how": "in ~/.cursor/mcp.json",
            "line": f'{{"mcpServers": {{"cair": {{"url": "{mcp_url}"}}}}}}',
        },
        {
            "name": "VS Code",
            "how": "in .vscode/mcp.json",
            "line": f'{{"servers": {{"cair": {{"type": "http", "url": "{mcp_url}"}}}}}}',
        },
        {
            "name": "MCP Inspector",
            "how": "in a terminal",
            "line": f"npx @modelcontextprotocol/inspector --transport http --server-url {mcp_url}",
        },
    ]


@read_only
def health(request: HttpRequest) -> HttpResponse:
    """Alive: nothing more is promised, nothing is asked of the database."""
    return JsonResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


def redirect(target: str, **headers: str) -> HttpResponse:
    """A redirect that may leave for a client's custom scheme, which Django's own class refuses."""
    return HttpResponse(status=302, headers={"Location": target, "Cache-Control": "no-store", **headers})


def hand_off(request: HttpRequest, client_name: str, location: str, host: str) -> HttpResponse:
    """The answer to an app on the person's device: the page goes on by itself, and has a link for when that fails.

    It holds what the redirect's address would: it is kept nowhere, and nobody learns where it came from.
    """
    context = {"page_title": "Go back to the app", "client_name": client_name, "location": location, "host": host}
    response = render(request, "oauth_relay/hand_off.html", context)
    response["Refresh"] = f"0;url={location}"
    response["Cache-Control"], response["Referrer-Policy"] = "no-store", "no-referrer"
    return response


def see_other(path: str) -> HttpResponse:
    """> 303 … redirecting the user agent to a different resource (RFC 9110 §15.4.4): a GET follows a form's POST."""
    response = HttpResponseRedirect(path)
    response.status_code = 303
    return response
