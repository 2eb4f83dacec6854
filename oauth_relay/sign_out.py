"""POST /logout: the end of one browser's session, here and at the provider it came from.

OpenID Connect RP-Initiated Logout 1.0. Connected clients stay connected: /connections ends those.
"""

from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib import auth
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from oauth_relay import audit, backchannel_logout, pages
from oauth_relay.browsers import note_sign_out, signed_in_person
from oauth_relay.identity_providers import Provider, ProviderUnavailable, provider


@never_cache
@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """This browser's session ends. Where the provider has an address for it, the person is sent on to end theirs there."""
    user, way, sid = signed_in_person(request), request.session.get("way"), request.session.get("upstream_sid")
    if user is not None:
        audit.record_within(audit.Event("user.signed_out", pseudonym=user.pseudonym))
    auth.logout(request)
    note_sign_out(request)
    if user is None or way not in settings.UPSTREAM_PROVIDERS:
        return pages.see_other("/")
    upstream = provider(way)
    address = end_session_address(upstream)
    if address is None:
        return pages.see_other("/")
    if sid:
        backchannel_logout.expect_echo(upstream, user, sid)
    return _go_on_to(request, upstream, address)


def end_session_address(upstream: Provider) -> str | None:
    """Where a person ends their session at `upstream` (§2); None where it offers nothing, or cannot be asked now.

    > client_id OPTIONAL … The most common use case for it is to specify the Client Identifier when
    > post_logout_redirect_uri is used but id_token_hint is not.

    ID tokens are not kept, so there is no hint to send.
    """
    try:
        endpoint = upstream.endpoint("end_session_endpoint")
    except ProviderUnavailable:
        return None
    if endpoint is None:
        return None
    query = {"client_id": upstream.client_id, "post_logout_redirect_uri": f"{settings.PUBLIC_URL}/"}
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"


def _go_on_to(request: HttpRequest, upstream: Provider, address: str) -> HttpResponse:
    """A page of our own that goes on by itself: our pages' `form-action` would stop a redirect to another host."""
    what = f"You are signed out here. Your session at {upstream.label} ends next."
    link = pages.Link(address, f"Sign out at {upstream.label}", urlsplit(address).hostname or "")
    repair = "If nothing happens, follow the link below."
    response = pages.refusal(request, 200, "Signed out", what, repair, link)
    response["Refresh"] = f"0; url={address}"
    return response
