"""Browser sessions whose stored key opens nothing: the row holds the SHA-256 of what the cookie holds (T18)."""

from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore

from oauth_relay.digests import digest_of


class SessionStore(DatabaseSessionStore):
    """Bends Django's database sessions at the four places that touch the key."""

    @classmethod
    def get_model_class(cls) -> Any:
        from oauth_relay.models import Session

        return Session

    def _get_session_from_db(self) -> Any:
        if self.session_key is None:
            return None
        from django.utils import timezone

        row = self.model.objects.filter(session_key=digest_of(self.session_key), expire_date__gt=timezone.now()).first()
        if row is None:
            self._session_key = None
        return row

    def exists(self, session_key: str) -> bool:
        return bool(super().exists(digest_of(session_key)))

    def create_model_instance(self, data: dict[str, Any]) -> Any:
        row: Any = super().create_model_instance(data)
        row.session_key = digest_of(row.session_key)
        row.user_id, row.provider = data.get("_auth_user_id"), data.get("way", "")
        row.upstream_sid = data.get("upstream_sid", "")
        return row

    def delete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        if key is not None:
            self.model.objects.filter(session_key=digest_of(key)).delete()
