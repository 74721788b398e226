"""The report: one file that needs nothing but itself. First what came out, then each question with its pictures."""

from collections.abc import Sequence

from experiment import formulas, measure
from experiment.arms import ARMS
from experiment.pictures import Picture
from experiment.plan import FACTORS, OF_TRIALS
from experiment.questions import Question, by_effort, headline, published
from experiment.results import START, TERA, Results, title_of, told
from minillm.pages.blocks import Html, bullets, command, header, page, pairs, section, table, tag

OF_INTERVALS = """Every interval is a 95 % interval of a paired difference: over seeds and over examples at once, with \
Student's width for few seeds; how it is made, and how often it holds the truth, is said in \
bench/experiment/effects.py and measured in tests/sft_vs_rl/test_effects.py. A sentence says that no difference was \
seen where the interval holds 0: that is no proof that there is none."""
OF_SEARCH = f"""As many trials for each arm, of {OF_TRIALS:.0%} of its budget, on dev, with the first seed; the factor \
is of the arm's usual learning rate. Short trials prefer high rates, for all arms alike. What was taken at the shared \
start serves at the others, too, where other rates may be better. Those of supervised learning and of expert iteration \
are often Muon's, all others AdamW's, so that they are not to be compared."""
OF_COST = """Verdicts are answers of its own that were judged. Operations count what is drawn and what is learned \
from, at most: reinforcement learning does not learn again from equal answers, nor from prompts whose answers all got \
the same. Seconds are those of this machine, which other work may have shared."""


def written(results: Results, asked: Sequence[Question], left_out: dict[str, str]) -> str:
    count = sum(" points [" in line or "]" in line for question in asked for line in question.sentences)
    lines = [design_in_words(results), OF_INTERVALS, chance(count)]
    return page(
        f"Supervised against reinforcement learning: {results.study.name}",
        header("supervised against reinforcement learning", headline(results), *lines),
        section("Right answers of all arms", *everything(results)),
        *(part(number, question) for number, question in enumerate(asked, 1)),
        section("Three axes", curves(efforts(results)), costs(results), note=OF_COST),
        section("What others found", others(results), note="As far as these figures say; other models, other tasks."),
        section("What each method optimises", *optimises()),
        section("The search", search(results), edges(results), note=OF_SEARCH),
        section("Failures and arms that were left out", *losses(results, left_out)),
        section("Do it again", *again(results)),
    )


def design_in_words(results: Results) -> str:
    design, study = results.design, results.study
    budget = f"{design.budget.minutes:g} minutes of the clock" if design.budget.minutes else (
        f"the floating-point operations of {design.budget.steps} steps of REINFORCE"
    )  # fmt: skip
    seeds = (
        f"{design.seeds} seeds"
        if design.seeds > 1
        else "One seed, so that nothing has an interval and no question an answer"
    )
    done = len(results.finished), len(results.work.jobs)
    begun = "" if done[0] == done[1] else f" Not finished: {done[0]} of {done[1]} jobs are done."
    return (
        f"All arms begin at the same models, those that {', '.join(f'{s:.0%}' for s in design.shares)} of the labels "
        f"of {study.name} give, and have the same budget: {budget}. {seeds}, each with starts of its own. "
        f"{study.of_seeds}{begun}"
    )


def chance(count: int) -> str:
    return (
        f"Of the {count} statements below that have an interval, about {count / 20:.0f} would tell a difference where "
        "there is none, if there were none anywhere."
    )


def part(number: int, question: Question) -> Html:
    values = [p.html() for p in question.pictures if p.values]
    drawn = curves([p for p in question.pictures if p.series])
    return section(f"{number}. {question.title}", bullets(question.sentences), drawn, *values, note=question.asked)


def curves(pictures: Sequence[Picture]) -> Html:
    drawn = [picture.html() for picture in pictures]
    return tag("div", *drawn, class_="curves") if any(drawn) else Html()


def efforts(results: Results) -> list[Picture]:
    band = "dev; the line is the mean over seeds, the band reaches from the worst to the best"
    return [
        Picture("by_operations", "Right answers by computation", band, by_effort(results, "operations"),
                unit="10¹² floating-point operations"),
        Picture("by_seconds", "Right answers by time", band, by_effort(results, "seconds"), unit="seconds of training"),
    ]  # fmt: skip


def everything(results: Results) -> list[Html]:
    """Each arm at the shared start, as it is."""
    rows = []
    for arm in (START, *results.design.arms):
        test, shift = (results.value(arm, of=of) for of in ("test", "shift"))
        if test is not None:
            seeds = results.seeds((arm, results.design.shared))
            matrix = results.matrix(arm, "right", "test", results.design.shared, seeds)
            each = " · ".join(f"{value:.1%}" for value in matrix.mean(axis=1))
            drawn = [shown(results.value(arm, what)) for what in ("passed", "any")]
            rows.append((title_of(arm), told(arm), shown(test), shown(shift), *drawn, each))
    columns = "arm", "is told", "right, test", "right, unlike the training", "pass@1", "pass@8", "test, seed by seed"
    return [table(columns, rows)]


def shown(interval) -> str:
    if interval is None:
        return "–"
    return str(interval) if interval.low == interval.low else interval.words()[0]


def costs(results: Results) -> Html:
    rows = []
    for arm in results.design.arms:
        cost, value = results.mean_cost(arm), results.value(arm)
        if cost and value:
            flops = f"{cost.operations / TERA:.3g}"
            rows.append(
                (
                    title_of(arm),
                    f"{cost.labels:,.0f}",
                    f"{cost.verdicts:,.0f}",
                    flops,
                    f"{cost.seconds:.0f}",
                    shown(value),
                )
            )
    columns = ("arm", "labels", "verdicts", "operations, 10¹²", "seconds", "right, test")
    return table(columns, rows)


def others(results: Results) -> Html:
    return table(("paper", "it says", "here"), published(results))


def optimises() -> list[Html]:
    rows = [(name, what, gradient, tag("code", test)) for name, what, gradient, test in formulas.FORMULAS]
    return [
        tag("p", formulas.NOTATION),
        table(("method", "objective", "gradient", f"held by, in {formulas.TESTS}"), rows),
        tag("p", formulas.TWO_CLASSES),
    ]


def search(results: Results) -> Html:
    factors = sorted(FACTORS[: results.design.trials])
    rows = []
    for arm in results.design.arms:
        trials, chosen = results.work.trials(arm), results.work.factor(arm)
        if trials:
            cells = (
                "–" if f not in trials else "broke" if trials[f] != trials[f] else f"{trials[f]:.1%}" for f in factors
            )
            base = next(job.base for job in results.work.jobs.values() if job.arm == arm)
            rows.append((title_of(arm), f"{base:g}", *cells, f"{chosen * base:.2g}"))
    columns = ("arm", "usual rate", *(f"× {factor:g}" for factor in factors), "taken")
    return table(columns, rows) if rows else Html()


def edges(results: Results) -> Html:
    """Arms that might have been better at a rate beyond those that were tried."""
    ends = {min(FACTORS[: results.design.trials]), max(FACTORS[: results.design.trials])}
    arms = [
        title_of(arm) for arm in results.design.arms if results.work.trials(arm) and results.work.factor(arm) in ends
    ]
    words = f"Best at the lowest or highest rate that was tried, so that others may be better: {', '.join(arms)}."
    return tag("p", words) if arms and results.design.trials > 1 else Html()


def losses(results: Results, left_out: dict[str, str]) -> list[Html]:
    broken = results.failures() or ["no training broke at the rate that was taken, nor in the search"]
    return [bullets([*broken, *(f"left out: {ARMS[name].title}, as {why}" for name, why in left_out.items())])]


def again(results: Results) -> list[Html]:
    """The experiment and every arm's own command, of the first seed; commands.txt has all."""
    rows = []
    for job in results.finished:
        if job.seed == 0 and job.kind in ("start", "half", "judge", "arm") and (line := results.command(job)):
            rows.append(command(line))
    options = {
        "task": results.study.name, "starts": ",".join(f"{100 * s:g}" for s in results.design.shares),
        "arms": ",".join(results.design.arms), "seeds": results.design.seeds, "trials": results.design.trials,
        **{name: value for name, value in vars(results.design.budget).items() if value},
    }  # fmt: skip
    whole = " ".join(f"--{name} {value}" for name, value in options.items())
    asked = {"answers drawn to a prompt": measure.DRAWN, "prompts of a set that they are drawn to": measure.ASKED}
    sets = {f"{name} examples": f"{len(some):,}" for name, some in results.study.sets.items()}
    return [command(f"python bench/sft_vs_rl.py {whole}"), pairs({**sets, **asked}),
            tag("p", "And each by itself, with the first seed; commands.txt has those of all:"), *rows]  # fmt: skip
