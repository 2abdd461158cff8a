"""Who answers what, over a real socket."""

import re
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.processes import Platform


def test_management_calls_reach_the_api(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    stranger, _ = platform.tenant("stranger")
    seen = httpx.get(f"{platform.url}/api/v1/adapters", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert seen.status_code == 200
    assert stranger not in seen.text


def test_data_calls_reach_the_gateway_which_knows_no_middleware(platform: Platform) -> None:
    answer = httpx.get(f"{platform.url}/v1/models", timeout=60)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "x-frame-options" not in answer.headers


def test_the_rest_reaches_django_with_its_headers(platform: Platform) -> None:
    answer = httpx.get(f"{platform.url}/login/", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_static_files_are_served_by_the_same_process(platform: Platform) -> None:
    answer = httpx.get(f"{platform.url}/static/unfold/css/styles.css", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")


def test_the_api_page_is_there(platform: Platform) -> None:
    assert httpx.get(f"{platform.url}/api/schema", timeout=60).status_code == 200
    page = httpx.get(f"{platform.url}/api/docs", timeout=60)
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert all(source.startswith("/") for source in sources), "the page fetches something from elsewhere"
    assert {httpx.get(platform.url + source, timeout=60).status_code for source in sources} == {200}


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/none", "/v1/chat/none", "/v1/uploads/none/none", "/api/v1/none"])
def test_what_no_api_serves_is_a_404_in_its_shape(platform: Platform, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = httpx.request(method, platform.url + path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/console"])
def test_a_socket_that_nobody_serves_is_refused_before_it_opens(platform: Platform, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(platform.url.replace("http", "ws") + path):
        pass
    assert refused.value.response.status_code == 404


def test_another_hosts_name_is_refused(platform: Platform) -> None:
    assert httpx.get(f"{platform.url}/login/", headers={"Host": "evil.example"}, timeout=60).status_code == 400


def test_the_web_process_says_nothing_of_keys(platform: Platform) -> None:
    """After the calls above, and one that carries a key where none belongs."""
    _, key = platform.tenant("hooli")
    httpx.get(f"{platform.url}/api/v1/adapters", params={"api_key": key}, timeout=60)
    logs = Path(platform.environment["LORAYARD_HOME"]) / "logs"
    assert not any(key in log.read_text() for log in logs.iterdir())
