"""Sets and evaluations over the management API, with a stranger beside."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from evaluations import lines
from evaluations.models import Evaluation, EvaluationSet
from evaluations.services import run_evaluation
from registry.models import Version
from tenants.models import Tenant
from tests.evaluations.conftest import DataPlane, jsonl, line

Clients = Callable[..., APIClient]
SETS, EVALUATIONS = "/api/v1/evaluation-sets", "/api/v1/evaluations"


def upload(client: APIClient, raw: bytes, name: str = "greetings", **more: Any) -> Any:
    body = {"name": name, "file": SimpleUploadedFile("set.jsonl", raw), **more}
    return client.post(SETS, body, format="multipart")


def test_a_set_is_uploaded_listed_and_deleted_by_its_tenant_alone(
    acme: Tenant, globex: Tenant, client_of: Clients
) -> None:
    owner, stranger = client_of(acme), client_of(globex)
    made = upload(owner, jsonl(line(), line("b", "regex", "^b")))
    assert made.status_code == 201, made.json()
    assert (made.json()["measure"], made.json()["count"]) == ("accuracy", 2)
    assert made.json()["digest"].startswith("sha256:")
    assert owner.get(SETS).json()["results"] == [made.json()]
    assert owner.get(f"{SETS}/greetings").json() == made.json()
    assert stranger.get(SETS).json()["results"] == []
    assert stranger.get(f"{SETS}/greetings").status_code == 404
    assert stranger.delete(f"{SETS}/greetings").status_code == 404
    assert upload(stranger, jsonl(line())).status_code == 201  # a name of its own
    again = upload(owner, jsonl(line()))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    assert owner.delete(f"{SETS}/greetings").status_code == 204
    assert owner.get(f"{SETS}/greetings").status_code == 404
    assert EvaluationSet.objects.for_tenant(globex).count() == 1


def test_a_faulty_set_is_refused_with_its_lines_and_leaves_nothing(acme: Tenant, client_of: Clients) -> None:
    owner = client_of(acme)
    refused = upload(owner, jsonl(line(), line("b", "regex", "("), line("c", "json-schema", {"$ref": "http://x/"})))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "evaluation_set_malformed")
    assert [(fault["line"], fault["field"]) for fault in refused.json()["error"]["faults"]] == [
        (2, "expected"),
        (3, "expected"),
    ]
    for answer in (
        upload(owner, b""),
        upload(owner, b"x" * (lines.MAX_BYTES + 1)),
        upload(owner, jsonl(line()), name="Not A Name"),
        upload(owner, jsonl(line()), extra="x"),
        owner.post(SETS, {"name": "x"}, format="multipart"),
    ):
        assert answer.status_code == 400, answer.json()
    assert not EvaluationSet.objects.exists()


@pytest.fixture
def running(
    acme: Tenant, client_of: Clients, make_version: Callable[..., Version], django_capture_on_commit_callbacks: Any
) -> Any:
    """An evaluation that acme asked for over the API, as the answer told it."""
    make_version(acme)
    upload(client_of(acme), jsonl(line("hi"), line("ho")))
    with django_capture_on_commit_callbacks() as enqueued:
        answer = client_of(acme).post(EVALUATIONS, {"set": "greetings", "model": "support"}, format="json")
    assert (answer.status_code, len(enqueued)) == (202, 1), answer.json()
    assert answer.headers["Location"] == f"{EVALUATIONS}/{answer.json()['id']}"
    return answer.json()


def test_an_evaluation_shows_its_progress_its_score_and_every_answer(
    acme: Tenant, running: Any, client_of: Clients, data_plane: DataPlane
) -> None:
    owner = client_of(acme)
    assert (running["state"], running["done"], running["total"], running["score"]) == ("queued", 0, 2, None)
    run_evaluation(running["id"])
    done = owner.get(f"{EVALUATIONS}/{running['id']}").json()
    assert (done["state"], done["model"], done["score"]["mean"]) == ("succeeded", "acme/support@v1", 0.5)
    assert done["score"]["low"] < 0.5 < done["score"]["high"]
    results = owner.get(f"{EVALUATIONS}/{running['id']}/results?limit=1").json()
    assert results["results"] == [{"line": 1, "scorer": "exact", "value": 1.0, "answer": "hi", "tokens": 2, "note": ""}]
    assert owner.get(results["next"]).json()["results"][0]["line"] == 2
    compared = owner.get(f"{EVALUATIONS}/comparison?adapter=support").json()
    assert [found["name"] for found in compared["sets"]] == ["greetings"]
    assert compared["models"][0]["scores"]["greetings"]["evaluation"] == running["id"]
    assert owner.get(f"{EVALUATIONS}/comparison?adapter=%00").json()["error"]["param"] == "adapter"


def test_a_stranger_meets_nothing_of_an_evaluation(
    acme: Tenant, globex: Tenant, running: Any, client_of: Clients
) -> None:
    stranger = client_of(globex)
    path = f"{EVALUATIONS}/{running['id']}"
    assert {stranger.get(path).status_code, stranger.get(f"{path}/results").status_code} == {404}
    assert stranger.post(f"{path}/cancel").status_code == 404
    assert stranger.get(EVALUATIONS).json()["results"] == []
    assert stranger.get(f"{EVALUATIONS}/comparison?adapter=support").json() == {"sets": [], "models": []}
    asked = stranger.post(EVALUATIONS, {"set": "greetings", "model": "acme/support"}, format="json")
    assert asked.status_code == 404
    assert client_of(acme).post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client_of(acme).post(f"{path}/cancel").status_code == 409


def test_scopes_and_adapters_of_a_key_hold(
    acme: Tenant, running: Any, client_of: Clients, make_version: Callable[..., Version]
) -> None:
    make_version(acme, "other")
    reader = client_of(acme, "evaluations:read")
    assert reader.get(EVALUATIONS).status_code == 200
    assert reader.post(EVALUATIONS, {"set": "greetings", "model": "other"}, format="json").status_code == 403
    assert upload(reader, jsonl(line())).status_code == 403
    assert client_of(acme, "adapters:read").get(SETS).status_code == 403
    confined = client_of(acme, "evaluations:read", "evaluations:write", adapters=("other",))
    assert confined.get(EVALUATIONS).json()["results"] == []
    assert confined.get(f"{EVALUATIONS}/{running['id']}").status_code == 404
    assert confined.post(EVALUATIONS, {"set": "greetings", "model": "support"}, format="json").status_code == 404
    assert confined.post(EVALUATIONS, {"set": "greetings", "model": "other"}, format="json").status_code == 202
    assert confined.delete(f"{SETS}/greetings").status_code == 403, "others evaluate on it"
    assert upload(confined, jsonl(line()), name="mine").status_code == 201
    assert confined.delete(f"{SETS}/mine").status_code == 204
    for unknown in ({"set": "none", "model": "other"}, {"set": "a\u0085", "model": "other"}):
        assert confined.post(EVALUATIONS, unknown, format="json").status_code == 404
    wrongs: list[dict[str, object]] = [{"set": "greetings"}, {"set": "greetings", "model": "other", "x": 1}]
    for wrong in wrongs:
        assert confined.post(EVALUATIONS, wrong, format="json").status_code == 400
    assert Evaluation.objects.count() == 2
