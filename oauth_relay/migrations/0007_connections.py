from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("oauth_relay", "0006_linking"),
    ]

    operations = [
        migrations.AddField(
            model_name="grant",
            name="last_tool",
            field=models.CharField(
                blank=True, db_default="", default="", help_text="The tool that was called last.", max_length=128
            ),
        ),
        migrations.AddField(
            model_name="grant",
            name="last_address",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Network address, as CLIENT_ADDRESSES keeps it.",
                max_length=64,
            ),
        ),
        migrations.AlterField(
            model_name="withdrawal",
            name="kind",
            field=models.CharField(
                choices=[
                    ("grant", "Grant"),
                    ("narrowed", "a grant that lost scopes"),
                    ("family", "Family"),
                    ("client", "Client"),
                    ("user", "User"),
                    ("credential", "a person's tokens at the providers"),
                ],
                max_length=16,
            ),
        ),
    ]
