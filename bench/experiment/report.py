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
    write_text(work.folder / "commands.txt", "".join(map(read, sorted(work.folder.rglob("command.txt")))))
    write_text(work.folder / "report.html", page.written(results, asked, left_out))
    return work.folder / "report.html"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
