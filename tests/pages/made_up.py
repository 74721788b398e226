"""A run that has everything a page can show, and texts that would like to be markup."""

import math

EVIL = '<script>alert(1)</script><img src="http://example.org/x.png">&amp;\u202e\x00\ud800'


def options(**more):
    given = {"task": "classify", "epochs": 3.0, "train": "a file.csv", "fields": f"text={EVIL}"}
    chosen = {"task": "classify", "lr": 6e-5, "seed": 0, "epochs": None, "steps": 300, "keep": "best", "out": None}
    return {"script": "sft", "given": given, **chosen, **more}


def findings(**more):
    truth = [[EVIL, "b", "✗", "a"], ["w" * 300, "a", "✓", ""], ["text " * 60, "b", "99.9%", "a"]]
    return {
        "task": "classify",
        "headline": "accuracy",
        "lower_is_better": False,
        "baselines": ["naive_bayes", "majority"],
        "examples": {"train": 6920, "dev": 872, "test": 0},
        "forms": {"nats": ".3f", "accuracy": ".1%"},
        "notes": [EVIL],
        "remarks": [f"this is hardly better than always answering {EVIL!r}"],
        "tables": [{"title": f"mistakes {EVIL}", "columns": ["text", EVIL, "", "truth"], "rows": truth}],
        "model": {"family": "BERT", "parameters": 1_218_946, "layers": 2, "width": 128},
        "environment": {"device": "CPU", "PyTorch": "2.13.0"},
        "next": f"python -m minillm classify {EVIL}",
        **more,
    }


def metrics(classes=("a", EVIL, "c"), **more):
    figures = {"accuracy": 0.881, "macro_f1": 0.87, "naive_bayes": 0.797, "majority": 0.509, "nats": 1.7}
    found = {}
    for name, value in figures.items():
        found |= {f"dev_{name}": value, f"dev_{name}_low": value - 0.02, f"dev_{name}_high": value + 0.02}
    found |= {f"start_{name}": value / 2 for name, value in found.items() if name.startswith("dev_accuracy")}
    confusion = {truth: {answer: 1 + i * j for j, answer in enumerate(classes)} for i, truth in enumerate(classes)}
    return {**found, "dev_confusion": confusion, "seconds": 3723.0, "steps": 300, **more}


def log(steps=300):
    """Of both kinds of training at once."""
    records = []
    for step in range(1, steps + 1):
        noise = math.sin(37 * step) / 5
        losses = {
            "loss": 4 * math.exp(-step / 60) + 0.01 + abs(noise) / 100,
            "gradient_norm": 2 + noise,
            "lr": 1 / step,
        }
        rewards = {"reward": 0.5 + noise, "reward_right": 0.4 + noise, "reward_short": 0.1, "kl": step / 50}
        records.append({"step": step, "seconds": step / 10, **losses, **rewards, "tokens": 99 * step})
        if step % max(1, steps // 6) == 0:
            dev = {"dev_accuracy": 0.6, "dev_accuracy_low": 0.55, "dev_accuracy_high": 0.65}
            samples = [{"prompt": EVIL, "answer": "b"}, {"prompt": "c", "answer": EVIL}]
            records.append({"step": step, "seconds": step / 10, **dev, "samples": samples})
    return records
