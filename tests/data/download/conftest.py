"""A client, and the server that it asks; `dryad_server` is importable by name."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from dryad_server import TOKEN, Server

from mode_ssm.data.download import DryadClient, RemoteFile


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, pauses: list[float]) -> DryadClient:
    return DryadClient(server.url, TOKEN, sleep=pauses.append)


@pytest.fixture
def file(client: DryadClient) -> RemoteFile:
    return client.list_files("10.1/x")[0]
