"""Exports, as a third party verifies them: with one file, in an interpreter that sees nothing else of ours."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import call_command
from rest_framework.test import APIClient

from audit import checkpoints, proof, signing
from tenants.models import Tenant
from tests.audit.conftest import write

Clients = Callable[..., APIClient]
Line = dict[str, Any]
PATH = "/api/v1/audit"


def exported(client: APIClient, query: str = "") -> list[str]:
    answer = client.get(f"{PATH}/export{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/jsonl")
    lines: list[str] = answer.content.decode().splitlines()
    return lines


def offline(key: str, *files: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", proof.__file__, "--key", key, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_a_third_party_verifies_an_export_with_one_file(acme: Tenant, client_of: Clients, tmp_path: Path) -> None:
    client = client_of(acme)
    write(acme, 3)
    checkpoints.take()
    write(acme, 2)
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(exported(client)))
    key = client.get(f"{PATH}/key").json()["public_key"]
    checked = offline(key, file)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "events 1 to 7 are as they were written" in checked.stdout
    assert "signed up to event 5; the last 2 are newer" in checked.stdout
    file.write_text(file.read_text().replace("key:1", "key:9"))
    checked = offline(key, file)
    assert (checked.returncode, "event 4 was edited" in checked.stderr) == (1, True)


def test_pages_follow_each_other_and_are_verified_together(acme: Tenant, client_of: Clients, tmp_path: Path) -> None:
    client = client_of(acme)
    write(acme, 5)
    checkpoints.take()
    files, after = [], 0
    while after is not None:
        lines = exported(client, f"?after={after}&limit=3")
        files.append(tmp_path / f"{after}.jsonl")
        files[-1].write_text("\n".join(lines))
        after = json.loads(lines[0])["next"]
    assert len(files) == 3
    assert "signed up to event 7" in offline(signing.public_key(), *files).stdout
    assert offline(signing.public_key(), files[0], files[2]).returncode == 1
    unsigned = offline(signing.public_key(), files[0])
    assert (unsigned.returncode, "no signed checkpoint" in unsigned.stderr) == (1, True)


def edited(lines: list[Line]) -> None:
    lines[2]["event"]["target"] = "other"


def edited_and_hashed_anew(lines: list[Line]) -> None:
    lines[2]["event"]["target"] = "other"
    previous = lines[1]["hash"]
    for line in lines[2:-1]:
        line["event"]["previous"] = previous
        previous = line["hash"] = proof.digest(line["event"])


def and_given_to_the_proof(lines: list[Line]) -> None:
    edited_and_hashed_anew(lines)
    lines[-1]["leaf"]["head"] = lines[-2]["hash"]


def and_to_its_root(lines: list[Line]) -> None:
    and_given_to_the_proof(lines)
    lines[-1]["checkpoint"]["root"] = proof.root_from(lines[-1]["leaf"], lines[-1]["path"])


def and_signed_by_another(lines: list[Line]) -> None:
    and_to_its_root(lines)
    key = Ed25519PrivateKey.generate()
    lines[-1]["signature"] = base64.b64encode(
        key.sign(proof.CHECKPOINT + proof.canonical(lines[-1]["checkpoint"]))
    ).decode()
    lines[-1]["key"] = base64.b64encode(key.public_key().public_bytes_raw()).decode()


def deleted(lines: list[Line]) -> None:
    del lines[2]


def cut_at_the_end(lines: list[Line]) -> None:
    del lines[4:-1]


def cut_at_the_end_and_in_the_header(lines: list[Line]) -> None:
    del lines[4:-1]
    lines[0]["last"] = 3


def swapped(lines: list[Line]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def doubled(lines: list[Line]) -> None:
    lines.insert(2, lines[2])


def of_another_chain(lines: list[Line]) -> None:
    lines[0]["chain"] = "00000000-0000-0000-0000-000000000000"


def without_header(lines: list[Line]) -> None:
    del lines[0]


@pytest.mark.parametrize(
    "attack",
    [
        edited, edited_and_hashed_anew, and_given_to_the_proof, and_to_its_root, and_signed_by_another, deleted,
        cut_at_the_end, cut_at_the_end_and_in_the_header, swapped, doubled, of_another_chain, without_header,
    ],
)  # fmt: skip
def test_an_export_that_was_touched_does_not_verify(
    acme: Tenant, globex: Tenant, client_of: Clients, attack: Callable[[list[Line]], None]
) -> None:
    client = client_of(acme)
    write(acme, 3)
    checkpoints.take()
    lines = [json.loads(line) for line in exported(client)]
    whole = proof.verify([json.dumps(line) for line in lines], signing.public_key())
    assert (whole.faults, whole.signed) == ([], 5)
    attack(lines)
    report = proof.verify([json.dumps(line) for line in lines], signing.public_key())
    assert report.faults


@pytest.mark.parametrize("line", ["", "[]", "nonsense", '{"kind": "event"}', '{"kind": "x"}', "[" * 100_000, "null"])
def test_a_line_that_makes_no_sense_is_a_fault(line: str) -> None:
    assert proof.verify([line], signing.public_key()).faults


def test_a_stranger_exports_its_own_and_nothing_of_others(acme: Tenant, globex: Tenant, client_of: Clients) -> None:
    client_of(acme)
    checkpoints.take()
    stranger = client_of(globex)
    assert "acme" not in "".join(exported(stranger))
    assert str(acme.pk) not in "".join(exported(stranger))
    for path in ("export", "verify", "checkpoints", "key"):
        assert stranger.get(f"{PATH}/{path}?tenant=acme").status_code == 404
        assert client_of(globex, "adapters:read").get(f"{PATH}/{path}").status_code == 403
    assert str(acme.pk) not in stranger.get(f"{PATH}/checkpoints").content.decode()


def test_checkpoints_and_the_verification_are_seen_over_the_api(
    acme: Tenant, client_of: Clients, sql: Callable[..., None]
) -> None:
    client = client_of(acme)
    checkpoints.take()
    checkpoints.publish()
    (row,) = client.get(f"{PATH}/checkpoints").json()["results"]
    assert row["length"] == 2
    assert proof.is_signed(proof.CHECKPOINT, row["checkpoint"], row["signature"], signing.public_key())
    assert client.get(f"{PATH}/verify").json() == {"ok": True, "events": 2, "problems": []}
    sql("UPDATE audit_event SET target = 'x' WHERE tenant_id = %s AND number = 1", acme.pk)
    found = client.get(f"{PATH}/verify").json()
    assert (found["ok"], found["problems"][0]["kind"], found["problems"][0]["number"]) == (False, "edited", 1)
    assert client_of(None).get(f"{PATH}/verify").json()["ok"] is False


def test_an_export_that_makes_no_sense_is_refused_and_an_empty_one_is_not(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    for query in ("after=-1", "limit=0", "limit=10001", "afer=1"):
        assert client.get(f"{PATH}/export?{query}").status_code == 400
    (header,) = exported(client, "?after=99")
    assert (json.loads(header)["first"], json.loads(header)["last"], json.loads(header)["next"]) == (100, 99, None)


def test_the_command_exports_a_whole_chain(acme: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    write(acme, 2)
    checkpoints.take()
    call_command("export_audit", tenant="acme")
    report = proof.verify(capsys.readouterr().out.splitlines(), signing.public_key())
    assert (report.faults, report.number, report.signed) == ([], 3, 3)
