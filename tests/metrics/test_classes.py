"""The report by class against scikit-learn, calibration and temperature by definition and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.metrics import calibration_error, class_report, fitted_temperature


def test_report_is_that_of_scikit_learn():
    reports = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
    @settings(max_examples=100, deadline=None)
    def check(pairs):
        truth, answers = map(list, zip(*pairs, strict=True))
        expected = reports.classification_report(truth, answers, output_dict=True, zero_division=0)
        for name, found in class_report(truth, answers).items():
            for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
                assert found[ours].value == pytest.approx(expected[name][theirs])
                assert 0 <= found[ours].low <= found[ours].value <= found[ours].high <= 1
            assert found["support"] == expected[name]["support"]

    check()


def test_calibration_by_hand():
    """Two bins of 20: 0.6 said and 12 right; 0.9 said and 14 right."""
    said = [0.9] * 20 + [0.6] * 20
    right = [True] * 14 + [False] * 6 + [True] * 12 + [False] * 8
    found = calibration_error(said, right)
    assert found.value == pytest.approx((0 + 0.2) / 2)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("sureness", [0.0, 0.3, 0.8])
def test_intervals_hold_the_calibration_error(n, sureness):
    """Answers that are right less often than they say: of what is said over a half, a share is missing."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        said = 0.5 + 0.5 * rng.beta(3, 1.2, n)
        found = calibration_error(said, rng.random(n) < said - sureness * (said - 0.5))
        held += found.low <= sureness * 0.5 * 3 / 4.2 <= found.high
    assert held / 300 > 0.9


def test_what_is_wrong_together_counts_once():
    """Texts of several answers that are all right or all wrong tell no more than one of each."""
    rng = np.random.default_rng(1)
    held = alone = 0
    for _ in range(300):
        said = np.repeat(0.5 + 0.5 * rng.beta(3, 1.2, 200), 5)
        right = np.repeat(rng.random(200), 5) < said - 0.3 * (said - 0.5)
        found = calibration_error(said, right, np.repeat(np.arange(200), 5))
        assert len(found.changes) == 200
        held += found.low <= 0.3 * 0.5 * 3 / 4.2 <= found.high
        naive = calibration_error(said, right)
        assert naive.high - naive.low < found.high - found.low
        alone += naive.low <= 0.3 * 0.5 * 3 / 4.2 <= naive.high
    assert held / 300 > 0.9
    assert alone / 300 < 0.9


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_found_that_logits_were_drawn_at(temperature):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((20_000, 4))
    noise = rng.gumbel(size=logits.shape)
    classes = (logits / temperature + noise).argmax(axis=1)  # a sample of softmax(logits / temperature)
    found = fitted_temperature(logits, classes)
    assert found == pytest.approx(temperature, rel=0.05)

    def nats(t):
        scaled = logits / t
        return (np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(scaled)), classes]).mean()

    assert nats(found) < min(nats(found * 1.01), nats(found / 1.01))


def test_temperature_has_bounds():
    """Where all answers are right, the surer the likelier; where all are wrong, the less sure."""
    logits, classes = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert fitted_temperature(logits, classes) == pytest.approx(0.01)
    assert fitted_temperature(logits, 1 - classes) == pytest.approx(100)
