"""The todos of the sample API. An owner is whom the token names: (issuer, subject). This service has no users."""

import uuid

from django.db import models


class Owner(models.Model):
    """Somebody who has been here: the pair of claims that names a person."""

    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="one_owner_per_issuer_and_subject")]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"


class Todo(models.Model):
    """One thing to do, its owner's alone."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(Owner, on_delete=models.CASCADE, related_name="todos")
    title = models.CharField(max_length=200)
    description = models.TextField(blank=True, max_length=4000)
    due = models.DateField(null=True, blank=True)
    done = models.BooleanField(default=False)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["created", "id"]

    def __str__(self) -> str:
        return self.title
