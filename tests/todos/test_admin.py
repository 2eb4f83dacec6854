"""What an operator sees of the sample API's rows."""

from typing import Any

import pytest
from django.test import Client

from todos.models import Owner, Todo

pytestmark = pytest.mark.django_db


@pytest.fixture
def todo() -> Todo:
    owner = Owner.objects.create(issuer="https://issuer.example", subject="ada")
    return Todo.objects.create(owner=owner, title="Water the plants")


@pytest.mark.parametrize("path", ["/admin/todos/todo/", "/admin/todos/todo/?q=ada", "/admin/todos/owner/?q=issuer"])
def test_an_operator_finds_todos_and_owners(path: str, admin_client: Client, todo: Todo) -> None:
    response = admin_client.get(path)
    assert response.status_code == 200
    assert b"ada" in response.content


def test_an_operator_can_correct_a_todo(admin_client: Client, todo: Todo) -> None:
    address = f"/admin/todos/todo/{todo.pk}/change/"
    assert b"Water the plants" in admin_client.get(address).content
    changed = {
        "owner": todo.owner.pk,
        "title": "Water the cactus",
        "description": "",
        "due": "2026-11-20",
        "done": "on",
    }
    assert admin_client.post(address, changed).status_code == 302
    todo.refresh_from_db()
    assert (todo.title, str(todo.due), todo.done) == ("Water the cactus", "2026-11-20", True)


def test_nobody_else_gets_there(client: Client, django_user_model: Any, todo: Todo) -> None:
    client.force_login(django_user_model.objects.create_user("ada"))
    assert client.get("/admin/todos/todo/").status_code == 302
