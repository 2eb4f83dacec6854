"""The protocol, in the order a client walks it. No trailing slashes."""

from django.urls import include, path

from oauth_relay import (
    authorization,
    backchannel_logout,
    connections,
    introspection,
    keys,
    link_pages,
    metadata,
    pages,
    registration,
    sign_in,
    sign_out,
    token_grants,
    upstream_login,
)

# The library reverses these names; its own URL table is never mounted.
protocol = [
    # 1  discovery: RFC 9728, then RFC 8414 in every spelling that clients try
    path(".well-known/oauth-protected-resource", metadata.protected_resource, name="protected-resource"),
    path(".well-known/oauth-protected-resource/mcp", metadata.protected_resource),
    path(".well-known/oauth-protected-resource/sse", metadata.protected_resource, {"endpoint": "sse"}),
    path(".well-known/oauth-authorization-server", metadata.authorization_server, name="oauth-server-metadata"),
    path(".well-known/oauth-authorization-server/mcp", metadata.authorization_server),
    path(".well-known/oauth-authorization-server/sse", metadata.authorization_server),
    path(".well-known/openid-configuration", metadata.authorization_server),
    path(".well-known/openid-configuration/mcp", metadata.authorization_server),
    path(".well-known/openid-configuration/sse", metadata.authorization_server),
    path("mcp/.well-known/openid-configuration", metadata.authorization_server),
    path("sse/.well-known/openid-configuration", metadata.authorization_server),
    # 2  registration: RFC 7591, RFC 7592
    path("register", registration.RegistrationView.as_view(), name="dcr-register"),
    path("register/<str:client_id>", registration.RegisteredClientView.as_view(), name="dcr-register-management"),
    # 3  the authorization request, and 6 the person's answer: RFC 6749 §4.1.1
    path("authorize", authorization.AuthorizationView.as_view(), name="authorize"),
    path("auth", authorization.AuthorizationView.as_view()),
    # 4  the person signs in, here or at the provider; 5 comes back: OpenID Connect Core §3.1
    path("login", sign_in.SignInView.as_view(), name="login"),
    path("callback", upstream_login.CallbackView.as_view(), name="callback"),
    path("callback/<str:provider_name>", upstream_login.CallbackView.as_view()),
    # 7  code → tokens, refresh: RFC 6749 §4.1.3, §6
    path("token", token_grants.RelayTokenView.as_view(), name="token"),
    # 8  the keys of the API tokens that tools send on: RFC 9068, RFC 7517
    path(".well-known/jwks.json", keys.JwksView.as_view(), name="jwks"),
    #    a resource server of somebody else's asks what a token is worth: RFC 7662
    path("introspect", introspection.IntrospectionView.as_view(), name="introspect"),
    # 9  the end: RFC 7009, and the person's own button
    path("revoke", token_grants.RelayRevokeView.as_view(), name="revoke-token"),
    # 10 the provider's word that somebody signed out there: OpenID Connect Back-Channel Logout §2.5
    path("backchannel-logout", backchannel_logout.BackchannelLogoutView.as_view()),
    path("backchannel-logout/<str:provider_name>", backchannel_logout.BackchannelLogoutView.as_view()),
]

urlpatterns = [
    path("", pages.home, name="home"),
    path("", include((protocol, "oauth2_provider"))),
    path("connections", connections.ConnectionsView.as_view(), name="connections"),
    path("link", link_pages.LinkView.as_view(), name="link"),
    path("logout", sign_out.sign_out, name="logout"),
    path("health", pages.health, name="health"),
]
