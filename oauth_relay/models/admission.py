"""Whom an entry of an allow-list turned out to mean."""

import uuid

from django.db import models


class AdmissionPin(models.Model):
    """One entry that names one person, or one organisation, and the account that it first stood for (T25).

    A login can be renamed and taken by another, an address given to a successor: the entry goes on meaning the account.
    An operator who wants it to mean somebody else deletes the row.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    entry = models.CharField(max_length=320, unique=True)
    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["issuer", "subject"], name="pin_by_person")]

    def __str__(self) -> str:
        return f"{self.entry} is {self.subject} at {self.issuer}"
