import json
import pickle

from adapters.errors import SHOWN_FINDINGS, Finding, Rejected


def test_a_finding_holds_nothing_that_a_log_or_jsonb_can_choke_on() -> None:
    finding = Finding("path", "a\0b\u202ec\ud800" + "x" * 10_000, tensor="\x1b[31m")
    text = json.dumps([finding.message, finding.tensor], ensure_ascii=False)
    assert finding.message.startswith(r"a\x00b\u202ec\ud800xxx")
    assert finding.tensor == r"\x1b[31m"
    assert len(text.encode()) < 2_000


def test_a_refusal_lists_so_many_findings_and_counts_the_rest() -> None:
    refusal = Rejected(Finding("shape", str(number)) for number in range(SHOWN_FINDINGS + 7))
    assert len(refusal.findings) == SHOWN_FINDINGS + 1
    assert refusal.findings[-1] == Finding("more", "7 more findings are not listed here.", severity="note")


def test_a_refusal_survives_the_way_through_a_worker() -> None:
    refusal = Rejected.because("pickle", "Save it as safetensors.", found="x.bin")
    again = pickle.loads(pickle.dumps(refusal))
    assert again.findings == refusal.findings
    assert str(again) == "[pickle] Save it as safetensors."
