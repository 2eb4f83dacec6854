from django.apps import AppConfig


class OAuthRelayConfig(AppConfig):
    name = "oauth_relay"
    verbose_name = "Authorization"
