"""The picture at the top of the README: the loss of the default supervised run, the reward of the default RL run.

python train_sft.py && python train_rl.py
python bench/defaults.py runs/pronounce-sft runs/arithmetic-rl
"""

import argparse
from pathlib import Path

import harness  # noqa: F401, first: puts the repository root on the path

from minillm.curves import smooth
from minillm.run import Run

OUT = Path(__file__).resolve().parent / "results" / "defaults.png"
PANELS = (  # what is drawn, its label, the run's title
    ("loss", "loss: nats a token of the answers", "by example: words and how they are pronounced"),
    ("reward", "reward: share of right answers", "by reward: sums, and a checker's verdict"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, help="a run of train_sft.py, one of train_rl.py")
    draw(parser.parse_args().runs)
    print(f"drawn to {OUT}")


def draw(folders: list[Path]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for panel, folder, (name, label, title) in zip(panels, folders, PANELS, strict=True):
        points = [(record["seconds"], record[name]) for record in Run(folder).read_log() if name in record]
        seconds, values = zip(*points, strict=True)
        panel.plot(seconds, values, color="0.8", linewidth=0.8)
        panel.plot(seconds, smooth(values), color="C0", linewidth=2)
        panel.set(title=title, xlabel="seconds on two CPU cores", ylabel=label)
        if name == "loss":
            panel.set_yscale("log")
            panel.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
        else:
            panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
