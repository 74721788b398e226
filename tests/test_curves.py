"""The log as a picture."""

import pytest

from minillm import curves


@pytest.mark.parametrize("steps", [0, 1, 3, 60])
def test_any_log_can_be_drawn(tmp_path, steps):
    records = [{"step": i, "seconds": i / 2, "loss": 1 / (i + 1)} for i in range(steps)]
    records.append({"step": steps, "seconds": 9.0, "dev_wer": 0.5})
    curves.draw(records, ["loss", "dev_wer", "kl"], tmp_path / "curves.png", "a title with $ and [brackets]")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_smooth():
    assert curves.smooth([2.0] * 100) == [2.0] * 100
    ramp = curves.smooth([float(i) for i in range(500)])
    assert len(ramp) == 500
    assert all(0 <= i - value < 10 for i, value in enumerate(ramp))
    assert curves.smooth([1.0, 3.0]) == [1.0, 3.0]  # too short to have noise
