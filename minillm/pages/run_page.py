"""The page of a run: report.html, from the other files of its folder.

What came out, in a sentence, then the figures beside their baselines, the curves, who is taken for whom, samples, and
how to do it again. A run that is not finished has a page, too, of what its log holds by now.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm import cli
from minillm.errors import UserError
from minillm.files import read_json, write_text
from minillm.glossary import explained, named
from minillm.metrics import Interval
from minillm.pages import charts
from minillm.pages.blocks import (
    Html,
    beside,
    bullets,
    clock,
    command,
    confusion,
    header,
    joined,
    number,
    page,
    pairs,
    section,
    table,
    tag,
)
from minillm.pages.charts import Series, Value
from minillm.run import Run
from minillm.wording import counted

OF_FIGURES = "Lines are 95 % intervals. Grey: what the model is to be compared with."
OF_CURVES = "Over the steps of the training. The band of a measurement is its 95 % interval; that of what every step \
logs is the noise which the line averages."
OF_CONFUSION = "Held-out examples: a row for each true class, shaded by the shares of its examples."
KINDS = {
    "headline": str,
    "baselines": list,
    "forms": dict,
    "examples": dict,
    "tables": list,
    "model": dict,
    "environment": dict,
}
SCRIPTS = {"sft": "supervised fine-tuning", "rl": "reinforcement learning"}
SPLITS = ("dev", "test")
FIRST = ("loss", "reward")  # curves after the task's own metric
HINTS = {
    "loss": "nats a target, in training",
    "reward": "mean of the answers of a step",
    "lr": "of the blocks",
    "gradient_norm": "before the step",
    "kl": "to the start, nats an answer",
    "entropy": "nats a token",
    "unfinished": "answers that were cut",
    "solved": "prompts with a right answer, of those tried",
    "finds": "different right answers, of all rounds",
    "groups_without_variance": "prompts whose answers all got the same",
    "length": "tokens an answer",
    "greedy_reward": "of greedy answers on dev",
    "explained_variance": "of returns, by the learned value",
    "ratios_beyond": "tokens beyond the bounds of the clip",
}
NAMES = {"lr": "learning rate", "kl": "KL"}
LOGARITHMIC = ("loss", "perplexity", "gradient_norm")  # where they span decades
SHARES = ("groups_without_variance", "unfinished", "solved", "ratios_beyond")  # of what is logged beside metrics
COUNTED = ("step", "seconds", "tokens", "best_reward", "worst_reward")  # what a curve is no picture of


def write_page(run: Run, metrics: Mapping[str, Any] | None = None) -> Path:
    """report.html in the run's folder. `metrics` are the final ones, where they have no file yet. UserError."""
    if metrics is None:
        metrics = read_json(run.path("metrics.json")) if run.is_finished else {}
    found = read_findings(run.path("report.json")) if metrics else {}
    write_text(run.path("report.html"), run_page(run.folder.name, run.options(), found, metrics, run.read_log()))
    return run.path("report.html")


def read_findings(path: Path) -> dict[str, Any]:
    """report.json, see findings.py; nothing where there is none. UserError for one that no run has written."""
    found = read_json(path) if path.exists() else {}
    rows = {"title": str, "columns": list, "rows": list}
    if found and not (
        has(found, KINDS) and all(isinstance(each, dict) and has(each, rows) for each in found["tables"])
    ):
        raise UserError(f"{path} is spoiled: it is not what a run writes")
    return found


def has(fields: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    return all(isinstance(fields.get(name), kind) for name, kind in kinds.items())


def run_page(
    name: str,
    options: Mapping[str, Any],
    found: Mapping[str, Any],
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
) -> str:
    """`options`: args.json; `found`: report.json, see findings.py; `metrics`: metrics.json; `log`: log.jsonl."""
    sentence = headline(options, found, metrics) if found else f"{options.get('task')}: not finished yet"
    kicker = f"{SCRIPTS.get(options.get('script'), '')} · {options.get('task')} · {name}"
    looks = metrics.get("dev_confusion") or metrics.get("test_confusion") or {}
    return page(
        f"{sentence} · {name}",
        header(kicker, sentence, in_short(found, metrics, log)),
        section("Figures", *figures(found, metrics), bullets(found.get("remarks", ())), note=OF_FIGURES),
        section("Curves", curves(found.get("headline", ""), found, metrics, log), note=OF_CURVES),
        section("Confusion", confusion(looks) if looks else Html(), note=OF_CONFUSION),
        *reports(metrics),
        *(section(capital(each["title"]), table(each["columns"], each["rows"])) for each in found.get("tables", ())),
        section("Answers while it learned", samples(log)),
        section("What was noticed in the data", bullets(found.get("notes", ()))),
        section("What the figures mean", meanings(found, metrics)),
        section("Do it again", *recipe(options, found)),
    )


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- what came out -------------------------------------------------------------------------------


def interval_of(metrics: Mapping[str, Any], prefix: str, name: str, found: Mapping[str, Any]) -> Interval | None:
    values = [metrics.get(f"{prefix}{name}{end}") for end in ("", "_low", "_high")]
    return Interval(*values, form=form_of(found, name)) if all(map(charts.is_number, values)) else None


def form_of(found: Mapping[str, Any], metric: str) -> str:
    """How its numbers are written; in per cent where nobody knows, as of a run that is not finished."""
    return found.get("forms", {}).get(metric, ".1%")


def axis_of(form: str) -> charts.Written:
    return charts.share if form.endswith("%") else charts.short


def headline(options: Mapping[str, Any], found: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """classify: accuracy 88.1% [85.8%, 90.1%] on 872 dev examples; naive Bayes 79.7%."""
    name, split = found["headline"], next((s for s in SPLITS if f"{s}_{found['headline']}" in metrics), SPLITS[0])
    value, before = (interval_of(metrics, f"{start}{split}_", name, found) for start in ("", "start_"))
    if value is None:
        return f"{options.get('task')}: finished"
    came_from = f"{before.value:{before.form}} → " if before else ""
    examples = counted(found["examples"].get(split, 0), f"{split} example")
    rules = [
        f"{named(other)} {rule.value:{rule.form}}"
        for other in found["baselines"]
        if (rule := interval_of(metrics, f"{split}_", other, found))
    ]
    words = f"{options.get('task')}: {named(name)} {came_from}{value} on {examples}"
    return "; ".join([words, ", ".join(rules)]) if rules else words


def in_short(found: Mapping[str, Any], metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Html:
    """The model, and how long it learned."""
    steps = max((record["step"] for record in log), default=0)
    seconds = metrics.get("seconds") or max((record["seconds"] for record in log), default=0)
    parts: list[Any] = []
    if model := found.get("model"):
        size = f"{model['parameters']:,} parameters, {counted(model['layers'], 'layer')} × {model['width']}"
        parts.append(f"A {model['family']} of {size}. ")
    share = metrics.get("matrix_share")
    of_rate = [", at ", clock(f"{share:.0%}"), " of the machine's matrix rate"] if charts.is_number(share) else []
    return joined([*parts, f"{counted(steps, 'step')} in ", clock(duration(seconds)), *of_rate, "."])


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def figures(found: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Html]:
    """All metrics that have intervals: shares over one axis, each other one over its own, beside simple rules that are
    written like it, as they are measured by it."""
    by_axis: dict[str, list[Value]] = {}
    for name, value in rows_of(found, metrics):
        form, is_rule = value.interval.form, name in found["baselines"]
        is_alike = is_rule and form == form_of(found, found["headline"])
        by_axis.setdefault("%" if form.endswith("%") else found["headline"] if is_alike else name, []).append(value)
    return [charts.intervals(values, axis_of(values[0].interval.form)) for values in by_axis.values()]


def meanings(found: Mapping[str, Any], metrics: Mapping[str, Any]) -> Html:
    """Of every figure on the page, for who does not know the field."""
    names = [name for name, _ in rows_of(found, metrics)] + ["matrix_share"] * ("matrix_share" in metrics)
    better = {found.get("headline"): "lower" if found.get("lower_is_better") else "higher"}
    words = {name: explained(name, better.get(name)) for name in names}
    return pairs({named(name): text for name, text in words.items() if text})


def rows_of(found: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, Value]]:
    """The task's own metric first, of the model, of its start, of simple rules."""
    if not found:
        return []
    metric, rules = found["headline"], found["baselines"]
    known = [key.removeprefix("dev_").removeprefix("test_") for key in metrics if f"{key}_low" in metrics]
    others = [name for name in dict.fromkeys(known) if name not in (metric, *rules) and not name.startswith("start_")]
    rows = []
    for split in SPLITS:
        rows += [("", metric, split), ("start_", metric, split), *(("", rule, split) for rule in rules)]
    rows += [(start, name, split) for name in others for split in SPLITS for start in ("", "start_")]
    several = sum(f"{split}_{metric}" in metrics for split in SPLITS) > 1
    values = []
    for start, name, split in rows:
        if interval := interval_of(metrics, f"{start}{split}_", name, found):
            label = named(name) + (", before" if start else "") + (f" · {split}" if several else "")
            values.append((name, Value(label, interval, not start and name not in rules)))
    return values


# ---- curves and samples --------------------------------------------------------------------------


def curves(metric: str, found: Mapping[str, Any], metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Html:
    """All that was logged, the task's own metric first. The parts of a reward share a figure."""
    names = dict.fromkeys(key for record in log for key, value in record.items() if charts.is_number(value))
    names = [name for name in names if name not in COUNTED and not name.endswith(("_low", "_high"))]
    # What was measured before and after alone is told by the figures; between two points there is no curve.
    few = len({record["step"] for record in log}) < 10
    names = [name for name in names if few or name == f"dev_{metric}" or sum(name in r for r in log) != 2]
    first = [f"dev_{metric}", *FIRST]
    names = sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name == "lr"))
    rules = found.get("baselines", ())
    parts = [name for name in names if name.startswith("reward_")]
    drawn = [
        one_curve(name, log, found, references(found, metrics) if name == first[0] else ())
        for name in names
        if name not in parts and name.removeprefix("dev_") not in rules
    ]
    if parts:
        drawn.insert(2, charts.figure("Parts of the reward", [series(name, log) for name in parts], "mean of a step"))
    return tag("div", *drawn, class_="curves") if any(drawn) else Html()


def one_curve(
    name: str, log: Sequence[Mapping[str, Any]], found: Mapping[str, Any], references: Sequence[tuple[str, float]]
) -> Html:
    metric = name.removeprefix("dev_")
    is_share = name in SHARES or (name.startswith("dev_") and form_of(found, metric).endswith("%"))
    note = HINTS.get(name, "on dev examples" if name.startswith("dev_") else "")
    title = NAMES.get(name) or named(metric)
    axis = charts.share if is_share else charts.short
    last = max(record["step"] for record in log)
    return charts.figure(capital(title), [series(name, log)], note, axis, references, metric in LOGARITHMIC, last)


def series(name: str, log: Sequence[Mapping[str, Any]]) -> Series:
    """Of several records of a step, such as a look at some dev examples and the last one at all, the last counts."""
    records = list({record["step"]: record for record in log if name in record}.values())
    has_bounds = all(f"{name}_low" in record and f"{name}_high" in record for record in records)
    bounds = [[record[f"{name}_{end}"] for record in records] for end in ("low", "high")] if has_bounds else ([], [])
    steps = [record["step"] for record in records]
    values = [record[name] for record in records]
    return Series(
        named(name.removeprefix("reward_").removeprefix("dev_")), steps, values, *bounds, is_noisy=name != "lr"
    )


def references(found: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    intervals = ((name, interval_of(metrics, "dev_", name, found)) for name in found.get("baselines", ()))
    return [(named(name), interval.value) for name, interval in intervals if interval]


def samples(log: Sequence[Mapping[str, Any]]) -> Html:
    """What it answered in practice, look by look."""
    rows: list[tuple[Any, ...]] = []
    for record in log:
        found = record.get("samples")
        looks = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        for i, sample in enumerate(looks):
            rows.append(("" if i else record["step"], sample.get("prompt"), sample.get("answer")))
    return table(("step", "prompt", "answer"), rows) if rows else Html()


def reports(metrics: Mapping[str, Any]) -> list[Html]:
    """What was measured by class, by type or the like: mappings of names to figures."""
    found = []
    for name, value in metrics.items():
        rows = list(value.values()) if isinstance(value, dict) and not name.endswith("_confusion") else []
        if not rows or not all(isinstance(row, dict) and all(map(charts.is_number, row.values())) for row in rows):
            continue
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [(key, *(share_or_count(row.get(column, "")) for column in columns)) for key, row in value.items()]
        split, _, title = name.partition("_")
        found.append(section(f"{capital(named(title))}, {split}", table(("", *map(named, columns)), cells)))
    return found


def share_or_count(value: float | str) -> int | str:
    return f"{value:.1%}" if isinstance(value, float) else value


# ---- how it was made -----------------------------------------------------------------------------


def recipe(options: Mapping[str, Any], found: Mapping[str, Any]) -> list[Html]:
    """The command, the options that were given and those that were chosen, data, model, machine."""
    given = dict(options.get("given") or {})
    line = f"python train_{options.get('script')}.py {cli.command_line(given)}".strip()
    chosen = {
        name: shown(value)
        for name, value in options.items()
        if name not in (*given, "given", "script", "task", "resume", "out") and value not in (None, [])
    }
    data = {name: counted(count, "example") for name, count in found.get("examples", {}).items() if count}
    texts = {
        name: {key: shown(value) for key, value in found.get(name, {}).items()} for name in ("model", "environment")
    }
    return [
        command(line),
        tag("p", exactness(options), class_="quiet"),
        beside(
            pairs({name: shown(value) for name, value in given.items()}, "Options that were given"),
            pairs(chosen, "Options as chosen"),
            pairs(data, "Data"),
            pairs(texts["model"], "Model"),
            pairs(texts["environment"], "Computed on"),
        ),
        *([tag("p", "What to do with the model:"), command(found["next"])] if found.get("next") else []),
    ]


def exactness(options: Mapping[str, Any]) -> str:
    if options.get("minutes") and not options.get("steps"):
        return "Its budget is time, so that another run takes more or fewer steps; with --steps it is exact."
    return "With the same number of threads on such a machine it gives the same weights and figures, bit by bit."


def shown(value: Any) -> str:
    """An option, or a value beside it, as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if charts.is_number(value) else str(value)
