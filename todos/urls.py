"""Everything under /api. No address ends in a slash, and what is not here is answered in JSON too."""

from django.urls import path, re_path

from todos.api import always_json, api, not_found, unforeseen

_patterns, _, _namespace = api.urls
for _pattern in _patterns:
    _pattern.callback = always_json(_pattern.callback)  # type: ignore[arg-type]  # each has one

urlpatterns = [
    path("api/", (_patterns, "ninja", _namespace)),
    re_path(r"^api(?:/|\Z)", always_json(not_found)),
]

# These three count only where this is the root of the URLs: in the service's own process.
handler400 = handler404 = not_found
handler500 = unforeseen
