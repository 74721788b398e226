"""The benchmarks run on any machine and leave their results; a foreign package named kernels is named."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

from minillm.gpt import GPT, GPTConfig
from minillm.heads import MaskedLM
from minillm.published import checkpoint
from minillm.published.byte_pairs import learn_byte_pairs

ROOT = Path(__file__).resolve().parents[1]


def bench(script: str, *options: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "bench" / script), "--device", "cpu", *options]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | env
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("script", ["attention.py", "cross_entropy.py"])
def test_quick_run(script, tmp_path):
    out = tmp_path / "result"
    done = bench(script, "--quick", "--rounds", "1", "--seconds", "0.001", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Triton needs a GPU" in done.stdout
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert {"ours", "eager"} <= {row["provider"] for row in rows}
    assert all(row["ms"] > 0 for row in rows if not row["note"])
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.skipif(not find_spec("triton"), reason="the kernels need Triton")
def test_dry_run_of_what_a_card_is_measured_with(tmp_path):
    """In the interpreter: every part runs to its end and finds every kernel right."""
    done = bench("gpu.py", "--dry-run", "--out", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert {ending["ending"] for ending in record["endings"]} == {"finished"}
    found = {kind: [r for r in record["records"] if r["kind"] == kind] for kind in ("check", "repeat", "row", "sweep")}
    assert {r["dtype"] for r in found["check"]} == {"float16", "float32"}
    assert all(r["passed"] for r in found["check"] + found["repeat"])
    assert {"ours", "eager"} <= {r["provider"] for r in found["row"] if r["ms"]}
    assert any(r["check"].startswith("step ") for r in found["check"])
    assert any(r["case"].startswith("step of ") and r["provider"] == "ours" and r["ms"] for r in found["row"])
    assert len(found["sweep"]) == 3
    assert all(len(r["tried"]) > 1 and not r["refused"] for r in found["sweep"])
    page = path.with_suffix(".md").read_text()
    assert "FAILED" not in page
    assert "- sweep" not in page


def test_quick_training_step(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "result"
    done = bench("train.py", "--quick", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["provider"] for row in rows] == ["transformers", "ours"] * 3
    assert all(row["ms"] > 0 and not row["note"] for row in rows)
    assert all(row["error"] < 0.02 for row in rows)


LATER = [pytest.param(case, marks=pytest.mark.slow) for case in ("SST-2", "numbers", "instructions")]


@pytest.mark.parametrize("case", ["WNUT", "MAWPS", "PandaLM", "SciTLDR", *LATER])
def test_both_sides_are_fine_tuned(case, tmp_path):
    """From tiny models that know nothing, on made-up data."""
    pytest.importorskip("transformers")
    if case in ("instructions", "SciTLDR"):
        pytest.importorskip("peft")
    made_data(tmp_path)
    out = tmp_path / "result"
    models = ["--encoder", made_encoder(tmp_path / "encoder"), "--decoder", made_decoder(tmp_path / "decoder")]
    options = ["--data", tmp_path, "--only", case, "--precision", "fp32", "--epochs", "3", "--out", out]
    done = bench("finetune.py", *map(str, (*models, *options)))
    assert done.returncode == 0, done.stderr
    ours, peer = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert (peer["provider"], ours["provider"]) == ("transformers", "ours")
    assert peer["metrics"].keys() <= ours["metrics"].keys()
    assert all(low <= value <= high for row in (peer, ours) for value, low, high in row["metrics"].values())
    if case == "instructions":  # which both learn as far in the same steps, from 5.7 nats
        found = [row["metrics"]["nats"][0] for row in (ours, peer)]
        assert found == pytest.approx([5.1, 5.1], abs=0.2)


def made_encoder(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "a", "b", "##c"]
    checkpoint.save(MaskedLM(tiny.bert_config(vocab_size=len(words), dropout=0.0)), folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def made_decoder(folder: Path) -> Path:
    tokenizer = learn_byte_pairs(["good", "bad"] * 9, 300)
    llama = {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False}
    checkpoint.save(GPT(GPTConfig(tokenizer.vocab_size, 128, 1, 32, 2, **llama)), folder)
    tokenizer.save(folder)
    return folder


def made_data(folder: Path) -> None:
    for name in ("ner_wnut17", "sentiment_sst2", "math_mawps", "pref_pandalm", "sft_instructions", "summ_scitldr"):
        (folder / name).mkdir()
        for split, endings in (("train", ["a", "ac", "a a"]), ("dev", ["b", "b b"])):
            records = [record for ending in endings for record in made_up(ending)]
            if name == "sentiment_sst2":
                records = [{"text": r["text"], "label": int(r["label"] == "good")} for r in records]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_varied_texts_are_compared_with_plain_ones(tmp_path):
    """By the gain of every way, paired; the runs are not made twice."""
    for name, endings in (("train", "abcdef"), ("dev", ["a b", "c"])):
        lines = (json.dumps(row) + "\n" for ending in endings for row in made_up(ending))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sizes = ["--data", str(tmp_path), "--sizes", "8,10", "--seeds", "2", "--ways", "drop,mask", "--steps", "2"]
    command = [sys.executable, str(ROOT / "bench" / "augment.py"), *sizes, "--init", "none"]
    found = []
    for name in ("first", "again"):
        where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / f"{name}.json")]
        done = subprocess.run([*command, *where], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert found[0] == found[1]
    assert "step 2" not in done.stdout
    for ways in found[0]["by size"].values():
        assert list(ways) == ["plain", "drop", "mask"]
        for way in ("drop", "mask"):
            gain = ways[way]["accuracy"]["value"] - ways["plain"]["accuracy"]["value"]
            assert ways[way]["gain"]["value"] == pytest.approx(gain)
            assert sum(ways[way]["gain by seed"]) / 2 == pytest.approx(gain)


def made_up(ending):
    """Two examples of every task."""
    for first, tag in (("good", "B-x"), ("bad", "O")):
        text = f"{first} {ending}"
        tags = [tag, *["O"] * len(ending.split())]
        judged = {"instruction": text, "input": "", "chosen": "good", "rejected": "bad"}
        asked = {"question": text, "answer": len(text), "output": first, "summary": [first]}
        yield {"tokens": text, "tags": tags, "text": text, "label": first, **judged, **asked}


def test_quick_generation(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "result"
    done = bench("generate.py", "--quick", "--rounds", "1", "--only", "float32", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [(row["provider"], row["mode"]) for row in rows] == [
        (provider, mode) for mode in ("generate", "load") for provider in ("transformers", "ours")
    ]
    assert all(row["ms"] > 0 and not row["note"] for row in rows)
    assert rows[1]["error"] == 0  # the same answers


def test_the_three_tasks_in_one_picture(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "by_labels.py"), "--out", str(tmp_path / "all.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.png").stat().st_size > 20_000


def test_quick_few_bits(tmp_path):
    out = tmp_path / "result"
    done = bench("few_bits.py", "--quick", "--rounds", "1", "--only", "read", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["provider"] for row in rows] == ["ours, float32", "ours, bfloat16", "ours, int8", "ours"]
    assert all(row["ms"] > 0 for row in rows)


def test_quick_answers(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "result"
    done = bench("seq2seq.py", "--quick", "--rounds", "1", "--only", "float32", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    cases = [(row["case"], row["provider"]) for row in rows]
    assert cases == [(case, side) for case in ("greedy float32", "beam 4 float32") for side in ("transformers", "ours")]
    assert all(row["ms"] > 0 and not row["note"] for row in rows)
    assert rows[1]["error"] == rows[3]["error"] == 0  # the same answers


def test_quick_steps_of_policy_gradients(tmp_path):
    pytest.importorskip("trl")
    out = tmp_path / "result"
    done = bench("rl.py", "--quick", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert {row["provider"] for row in rows} == {"TRL", "TRL, its defaults", "ours"}
    assert all(row["ms"] > 0 for row in rows)


def test_quick_steps_over_conversations(tmp_path):
    pytest.importorskip("trl")
    out = tmp_path / "result"
    done = bench("chat.py", "--quick", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["provider"] for row in rows] == ["TRL, padded", "TRL, packed", "ours"] * 2
    assert all(row["ms"] > 0 and not row["note"] for row in rows)  # all have the same loss


def test_quick_simulation_of_intervals():
    script = [sys.executable, str(ROOT / "bench" / "intervals.py"), "--quick"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    known = {"rate", "ratio", "macro-F1", "entity F1", "mean", "Pearson", "Spearman", "calibration error", "difference"}
    known |= {"BLEU"}
    assert {metric for metric, *_ in cells} == known
    assert all(float(mean.rstrip("%")) > 85 for *_, mean, _ in cells)


def test_a_foreign_package_named_kernels_is_named(tmp_path):
    """Imported before ours can be put first on the path, as a start-up file of an environment might."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import kernels")
    done = bench("attention.py", "--quick", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert "another package named 'kernels'" in done.stderr
