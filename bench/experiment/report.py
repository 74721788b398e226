"""report.html, PNGs, evaluations.csv and commands.txt, of what is finished."""

from pathlib import Path

from experiment import page, questions
from experiment.plan import Design
from experiment.results import Results
from experiment.runner import Runner
from experiment.studies import Study
from minillm.files import write_text


def write(study: Study, design: Design, work: Runner, left_out: dict[str, str]) -> Path:
    results = Results(study, design, work)
    asked = questions.answered(results)
    for picture in (*(p for question in asked for p in question.pictures), *page.efforts(results)):
        if picture:
            picture.save(work.folder)
    results.write_csv(work.folder / "evaluations.csv")
    commands = filter(None, map(results.command, results.finished))
    write_text(work.folder / "commands.txt", "".join(f"{line}\n" for line in commands))
    write_text(work.folder / "report.html", page.written(results, asked, left_out))
    return work.folder / "report.html"
