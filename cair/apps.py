from django.apps import AppConfig


class CairConfig(AppConfig):
    name = "cair"
    verbose_name = "CAIR"

    def ready(self) -> None:
        from cair import checks  # noqa: F401
