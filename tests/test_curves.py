"""The log as a picture."""

import pytest

from minillm import curves


@pytest.mark.parametrize("steps", [0, 1, 3, 60])
def test_any_log_can_be_drawn(tmp_path, steps):
    records = [{"step": i, "seconds": i / 2, "loss": 1 / (i + 1)} for i in range(steps)]
    records.append({"step": steps, "seconds": 9.0, "dev_wer": 0.5})
    curves.draw(records, ["loss", "dev_wer", "kl"], tmp_path / "curves.png", "a title with $ and [brackets]")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("title", [r"$x^{$ in {a folder", r"$\frac$", "a_b^c"])
def test_a_folder_of_any_name_can_be_a_title(tmp_path, title):
    """`$…$` would be a formula, and a wrong one would end a training in its last second."""
    curves.draw([{"step": 1, "seconds": 1.0, "loss": 0.5}], ["loss"], tmp_path / "curves.png", title)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    """Of a line that was spoiled on a disk and still is JSON."""
    records = [{"step": 1, "seconds": 1.0, "loss": value} for value in (0.5, "x", None, [1], {"a": 2}, 0.25)]
    curves.draw(records, ["loss"], tmp_path / "curves.png", "a title")


def drawn(monkeypatch, tmp_path, records, names):
    """The lines of each panel."""
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    curves.draw(records, names, tmp_path / "curves.png", "title")
    monkeypatch.undo()
    lines = [panel.get_lines() for panel in pyplot.gcf().axes if panel.get_visible()]
    pyplot.close()
    return lines


def marked(line):
    return line.get_marker() not in ("", "None")


def test_many_steps_are_lines_and_few_evaluations_are_marked(monkeypatch, tmp_path):
    records = [{"seconds": float(i), "lr": 1e-3 * (1250 - i), "loss": 1.0} for i in range(1250)]
    records += [{"seconds": 300.0 * i, "dev_wer": 0.5} for i in range(1, 5)]
    lr, loss, wer = drawn(monkeypatch, tmp_path, records, ["lr", "loss", "dev_wer"])
    assert [(len(line.get_xdata()), marked(line)) for line in lr] == [(1250, False)]
    assert [(len(line.get_xdata()), marked(line)) for line in loss] == [(1250, False)] * 2  # noise and average
    assert [(len(line.get_xdata()), marked(line)) for line in wer] == [(4, True)]


@pytest.mark.parametrize(("steps", "mark"), [(1, True), (4, True), (50, True), (51, False), (300, False)])
def test_a_schedule_is_one_line(monkeypatch, tmp_path, steps, mark):
    records = [{"seconds": float(i), "lr": 1e-3} for i in range(steps)]
    ((line,),) = drawn(monkeypatch, tmp_path, records, ["lr"])
    assert marked(line) == mark


def test_smooth():
    assert curves.smooth([2.0] * 100) == [2.0] * 100
    ramp = curves.smooth([float(i) for i in range(500)])
    assert len(ramp) == 500
    assert all(0 <= i - value < 10 for i, value in enumerate(ramp))
    assert curves.smooth([1.0, 3.0]) == [1.0, 3.0]  # too short to have noise
