"""Everything Django answers. /mcp, /sse and /messages/ never come here: see cair.asgi."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", include("oauth_relay.urls")),
    path("", include("todos.urls")),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
]

handler400 = "oauth_relay.pages.bad_request"
handler403 = "oauth_relay.pages.forbidden"
handler404 = "oauth_relay.pages.not_found"
handler500 = "oauth_relay.pages.unforeseen"
