from datetime import timedelta

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import migrations, models
from django.db.models.functions import Now

LIFETIME = [MinValueValidator(timedelta(minutes=10)), MaxValueValidator(timedelta(days=3650))]


class Migration(migrations.Migration):
    dependencies = [
        ("oauth_relay", "0008_step_up"),
    ]

    operations = [
        migrations.AddField(
            model_name="client",
            name="refresh_idle_lifetime",
            field=models.DurationField(
                blank=True,
                help_text="How long a refresh token is good without use (7 00:00:00 is a week). Empty: as the server has it.",
                null=True,
                validators=LIFETIME,
            ),
        ),
        migrations.AddField(
            model_name="client",
            name="refresh_absolute_lifetime",
            field=models.DurationField(
                blank=True,
                help_text="How long refreshing goes on without a new sign-in. Empty: as the server has it.",
                null=True,
                validators=LIFETIME,
            ),
        ),
        migrations.AddField(
            model_name="refreshtoken",
            name="family_since",
            field=models.DateTimeField(
                db_default=Now(), help_text="When the code was redeemed that began the family."
            ),
        ),
    ]
