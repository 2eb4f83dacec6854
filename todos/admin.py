"""Todos and their owners, for operators."""

from django.contrib import admin

from todos.models import Owner, Todo


@admin.register(Owner)
class OwnerAdmin(admin.ModelAdmin):
    list_display = ["subject", "issuer", "created"]
    list_filter = ["issuer"]
    search_fields = ["subject", "issuer"]
    readonly_fields = ["created"]


@admin.register(Todo)
class TodoAdmin(admin.ModelAdmin):
    list_display = ["title", "owner", "due", "done", "created"]
    list_filter = ["done", "due"]
    list_select_related = ["owner"]
    search_fields = ["title", "description", "owner__subject"]
    autocomplete_fields = ["owner"]
    readonly_fields = ["id", "created"]
