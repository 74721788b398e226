"""The real data sets beside the checkout: prompts with answers, and conversations, are read with at most a --fields."""

from pathlib import Path

import pytest

from minillm.tasks.chat import Chat
from minillm.tasks.seq2seq import Seq2Seq

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the checkout")
SETS = [
    (Seq2Seq, "mt_multi30k_en_de", "prompt=en,answer=de", "bleu", 28_900),
    (Seq2Seq, "summ_scitldr", "prompt=text,answer=summary", "rouge", 1_900),
    (Seq2Seq, "math_mawps", "prompt=question,answer=equation", "exact", 1_300),
    (Seq2Seq, "math_mawps", "prompt=question", "exact", 1_300),
    (Seq2Seq, "math_gsm8k", "prompt=question,answer=solution", "bleu", 6_900),
    (Seq2Seq, "sft_instructions", "prompt=instruction+input,answer=output", "bleu", 900),
    (Chat, "sft_instructions", "prompt=instruction+input,answer=output", None, 900),
    (Chat, "chat_sgd", None, None, 150),
]


@pytest.mark.parametrize(("task", "name", "fields", "metric", "least"), SETS)
def test_it_is_read(task, name, fields, metric, least):
    options = {"fields": fields} | ({"metric": metric} if metric == "bleu" else {})
    if metric == "bleu":
        pytest.importorskip("sacrebleu")
    made = task(task.Options(DATA / name / "train.jsonl", DATA / name / "dev.jsonl", **options), 0)
    assert len(made.splits.train) >= least
    assert len(made.splits.dev) > 30
    assert metric is None or made.metric == metric
