"""A headless Chromium to look at pages with, spoken to through a pipe (the Chrome DevTools Protocol); no driver.

python tests/browser.py PAGE.html FOLDER    → pictures of the page: narrow and wide, light and dark
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ALONE = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-extensions"),
    *("--disable-component-update", "--disable-sync", "--no-default-browser-check", "--remote-debugging-pipe"),
)


def executable():
    """Of a browser on this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page, as a context. What it asked of any network is in `requests`, what it complained of in `complaints`."""

    def __enter__(self):
        read_by_it, self.to = os.pipe()
        self.of, written_by_it = os.pipe()
        self.profile = tempfile.mkdtemp()
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
        command = [executable(), *ALONE, *sandbox, f"--user-data-dir={self.profile}"]

        def take_pipes():  # the browser reads from 3 and writes to 4
            spare = [os.dup2(end, 20 + i) for i, end in enumerate((read_by_it, written_by_it))]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, preexec_fn=take_pipes, close_fds=False, stdout=nowhere, stderr=nowhere, start_new_session=True
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self.number, self.rest, self.session = 0, b"", None
        self.requests, self.complaints, self.events = [], [], []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Emulation.setScrollbarsHidden", hidden=True)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.session = None
        with contextlib.suppress(OSError):
            self.ask("Browser.close")
        os.close(self.to)
        os.close(self.of)
        self.process.wait(timeout=20)
        shutil.rmtree(self.profile, ignore_errors=True)

    def ask(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def receive(self):
        """The next answer, or event, which is noted."""
        while b"\0" not in self.rest:
            part = os.read(self.of, 1 << 16)
            if not part:
                raise OSError("the browser is gone")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        method, parameters = message.get("method"), message.get("params", {})
        self.events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(parameters)
        return message

    def open(self, path, width=1440, height=900, dark=False, media="screen"):
        """The page, as wide, in light or dark, on a screen or printed."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=Path(path).resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.receive()

    def evaluate(self, expression):
        """What a line of JavaScript gives; the page's own policy does not hold for it."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def picture(self):
        """PNG of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])


def main(page, folder):
    with Browser() as browser:
        for width in (390, 1440):
            for dark in (False, True):
                browser.open(page, width, dark=dark)
                name = f"{width}-{'dark' if dark else 'light'}.png"
                Path(folder, name).write_bytes(browser.picture())


if __name__ == "__main__":
    main(*sys.argv[1:])
