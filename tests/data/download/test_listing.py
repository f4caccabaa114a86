"""Which files there are: versions, pages, names, answers that are no listing, no answer."""

import hashlib

import pytest
from dryad_server import CONTENT, Handler, Server, closed_port

from mode_ssm.data.download import DryadClient, UnreachableError


def test_the_newest_version_is_listed_over_all_pages(server: Server, client: DryadClient) -> None:
    server.files = {"a.zip": b"aa", "b.pkl": b"bbb"}
    server.digest_type = "sha-256"
    files = client.list_files("10.5061/dryad.x")
    assert [(file.name, file.size, file.digest_type) for file in files] == [
        ("a.zip", 2, "sha256"),
        ("b.pkl", 3, "sha256"),
    ]
    assert files[1].digest == hashlib.sha256(b"bbb").hexdigest()
    assert files[1].url == f"{server.url}/download/b.pkl"
    assert server.requests[0][0] == "/api/v2/datasets/doi:10.5061/dryad.x/versions"


@pytest.mark.parametrize("name", ["../one.bin", "/etc/one.bin", "..", "a/b.bin"])
def test_names_that_lead_elsewhere_are_refused(server: Server, client: DryadClient, name: str) -> None:
    server.files = {name: CONTENT}
    with pytest.raises(ValueError, match="which is no plain file name"):
        client.list_files("10.1/x")


def test_answers_that_are_no_listing_end_in_one_line(
    server: Server, client: DryadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "listing", lambda second_page: {"error": "what?"})
    with pytest.raises(ValueError, match=r"lists doi:10.1/x in a form that is not understood \(KeyError") as error:
        client.list_files("10.1/x")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(
        Handler, "send_json", lambda self, value: self.send_bytes(200, b"<html>are you a robot?</html>")
    )
    with pytest.raises(ValueError, match=r"does not answer in JSON; does http://127.0.0.1:\d+ have Dryad's API\?$"):
        client.list_files("10.1/x")


def test_offline_is_said_after_three_tries(pauses: list[float]) -> None:
    with pytest.raises(UnreachableError, match=r"cannot be reached \(.*refused\); tried 3 times$"):
        DryadClient(f"http://127.0.0.1:{closed_port()}", sleep=pauses.append).list_files("10.1/x")
    assert pauses == [1.0, 2.0]
