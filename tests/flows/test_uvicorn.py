"""The same application on uvicorn, the documented choice for throughput: server-neutral is a promise (DESIGN §9)."""

import signal

from tests.servers import database, free_port, serve
from tests.walk import OAuthClient, Person


def test_a_client_of_daphne_goes_on_at_uvicorn() -> None:
    port = str(free_port())
    command = ["-m", "uvicorn", "cair.asgi:application", "--host", "127.0.0.1", "--port", port]
    with database("sqlite") as url:
        with serve(url, {"PORT": port}) as daphne:
            known = OAuthClient(daphne.url).connect(Person(daphne.url))
        with serve(url, {"PORT": port}, command) as uvicorn:
            assert known.todos()
            client = OAuthClient(uvicorn.url, name="Second").connect(Person(uvicorn.url))
            assert client.call("create_todo", title="From uvicorn").status_code == 200
            assert uvicorn.end(signal.SIGTERM) < 5
