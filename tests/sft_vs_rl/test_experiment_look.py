"""The report as a browser shows it: narrow and wide, light and dark."""

import sys
from pathlib import Path

import browser
import pytest
import trials
from experiment import report

if browser.executable() is None:
    pytest.skip("needs Chromium on the path, as apt-get install chromium gives", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pages"))
from test_look import HIDDEN, PALE, UNREADABLE


@pytest.fixture(scope="module")
def report_of_all(tmp_path_factory):
    return report.write(*trials.made(tmp_path_factory.mktemp("experiment")), {"dpo": trials.EVIL})


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_seen(report_of_all, width, dark):
    with browser.Browser() as chromium:
        chromium.open(report_of_all, width, dark=dark)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert chromium.evaluate("document.querySelectorAll('figure svg').length") >= 4
        assert chromium.evaluate(HIDDEN) == []
        assert chromium.evaluate(UNREADABLE) == []
        assert chromium.evaluate(PALE) == []
        assert chromium.complaints == []
        assert chromium.requests == [report_of_all.as_uri()]
