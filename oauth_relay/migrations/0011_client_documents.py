from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('oauth_relay', '0010_family_since'),
    ]

    operations = [
        # The column keeps its name: nothing to do for the database, and nothing that an older process would miss.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RenameField(model_name='logintransaction', old_name='client', new_name='client_row'),
                migrations.AlterField(
                    model_name='logintransaction',
                    name='client_row',
                    field=models.ForeignKey(db_column='client_id', null=True, on_delete=models.deletion.CASCADE, related_name='+', to=settings.OAUTH2_PROVIDER_APPLICATION_MODEL),
                ),
            ],
        ),
        migrations.AddField(
            model_name='logintransaction',
            name='client_document',
            field=models.JSONField(help_text='Who asks, while nobody has consented and no row is written.', null=True),
        ),
        migrations.AddField(
            model_name="logintransaction",
            name="kept_scope",
            field=models.TextField(blank=True, default="", db_default="", help_text="What the client had, offered with what is new."),
        ),
    ]
