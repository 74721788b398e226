"""The glossary and the tasks say the same of a metric."""

import pytest

from minillm.glossary import GLOSSARY, explained, named
from minillm.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_which_way_is_better(name):
    task = TASKS[name]
    if name != "tag":  # whose headline depends on the data
        assert GLOSSARY[task.headline].is_better == ("lower" if task.lower_is_better else "higher")


def test_every_entry_is_a_phrase():
    """Behind the name in a table: neither a sentence nor the name again."""
    for key, (name, means, is_better) in GLOSSARY.items():
        assert is_better in ("", "higher", "lower")
        assert means, key
        assert not means.endswith("."), key
        assert means[0].islower() or means.startswith("F1"), key
        assert name.lower() != means.lower()


def test_what_is_not_in_it_is_called_by_its_name():
    assert named("of_my_own") == "of my own"
    assert explained("of_my_own") == ""
    assert explained("wer").endswith(", lower is better")
