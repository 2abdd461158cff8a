import json
import pickle

from adapters.errors import SHOWN_FINDINGS, Finding, Rejected, fold
from adapters.folding import folded


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


def test_a_rule_that_holds_for_many_is_said_once_with_their_number() -> None:
    linears = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    names = [f"model.layers.{layer}.{linear}" for layer in range(8) for linear in linears]
    every = [Finding.about(name, "unmatched-module", "there is none.", found=name[-6:]) for name in names]
    one, other = fold([*every[:5], Finding("path", "Elsewhere."), *every[5:]])
    assert one.message == ("In 24 places (layers 0-7: self_attn.q_proj, self_attn.k_proj, mlp.up_proj): there is none.")
    assert (one.count, one.found, other.rule) == (24, "q_proj, k_proj, p_proj", "path")
    assert fold([one, other]) == (one, other)


def test_what_differs_in_more_than_its_subject_stays_apart() -> None:
    findings = [Finding.about("a.0.b", "x", "too long."), Finding.about("a.1.b", "x", "too short."), Finding("x", "y")]
    assert fold(findings) == tuple(findings)


def test_layers_that_have_the_same_are_told_together() -> None:
    assert folded(["model.layers.3.a"]) == "layers 3: a"
    names = ["h.0.a", "h.1.a", "h.2.a", "h.5.a", "h.1.b", "lm_head", "embed"]
    assert folded(names) == "h 0-2, 5: a; h 1: b; lm_head, embed"
    assert folded(f"m{number}" for number in range(11)).endswith("m7 and 3 more")
