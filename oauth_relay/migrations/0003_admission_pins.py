"""The allow-lists' memory of whom each entry means (T25)."""

import uuid

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("oauth_relay", "0002_former_secrets")]

    operations = [
        migrations.CreateModel(
            name="AdmissionPin",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("entry", models.CharField(max_length=320, unique=True)),
                ("issuer", models.CharField(max_length=255)),
                ("subject", models.CharField(max_length=255)),
                ("created", models.DateTimeField(auto_now_add=True)),
            ],
            options={"indexes": [models.Index(fields=["issuer", "subject"], name="pin_by_person")]},
        ),
    ]
