from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("oauth_relay", "0007_connections"),
    ]

    operations = [
        migrations.AddField(
            model_name="client",
            name="is_resource_server",
            field=models.BooleanField(
                default=False, db_default=False, help_text="May ask at /introspect what a token is worth (RFC 7662). Needs a secret."
            ),
        ),
        migrations.AddField(
            model_name="client",
            name="restart_on_step_up",
            field=models.BooleanField(
                default=False,
                db_default=False,
                help_text="Is made to authorize anew when a tool needs more, for clients that only refresh: they lose their tokens.",
            ),
        ),
    ]
