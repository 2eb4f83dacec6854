"""What happened, written once."""

import uuid
from typing import Any

from django.db import models


class AuditEvent(models.Model):
    """One authorization event or tool call. Rows are added and read, never changed, never deleted by the application.

    People appear by their pseudonym only; no token, code, secret or claim is ever a value here.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    at = models.DateTimeField(db_index=True)
    event = models.CharField(max_length=64)
    outcome = models.CharField(max_length=32)
    pseudonym = models.UUIDField(null=True, db_index=True)
    client_id = models.CharField(max_length=255, blank=True)
    grant_id = models.UUIDField(null=True)
    trace_id = models.CharField(max_length=32, blank=True)
    detail = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "audit"

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.event} {self.outcome}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("An audit event is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("An audit event is never deleted.")
