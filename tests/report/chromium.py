"""Chromium through the DevTools protocol on a pipe, so that the standard library is enough."""
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time

NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40}


def find_chromium():
    """Path of the first one installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One Chromium with its DevTools on file descriptors 3 (to it) and 4 (from it)."""

    def __init__(self, binary, home):
        to_read, self.to = os.pipe()
        self.back, back_write = os.pipe()
        # Above 3 and 4, so that moving one there cannot close the other.
        to_read, back_write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, back_write))

        def pipes():
            os.dup2(to_read, 3)
            os.dup2(back_write, 4)

        self.process = subprocess.Popen(
            [binary, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--no-first-run",
             f"--user-data-dir={home}/profile", "about:blank"],
            preexec_fn=pipes, pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "HOME": home})
        os.close(to_read)
        os.close(back_write)
        self.number, self.buffer, self.events = 0, b"", []

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def receive(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return None
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        deadline = time.monotonic() + 20
        while True:
            answer = self.receive(deadline)
            if answer is None:
                raise RuntimeError(f"{method}: no answer")
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)


class Page:
    def __init__(self, browser, path, width=1280, dark=False):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.theme(dark)
        self.resize(width)
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && document.querySelectorAll('section').length > 0")
        # Sheets are decoded behind the load event.
        self.wait("[...document.querySelectorAll('.clip canvas')].every((c) => /cannot|small/.test("
                  "c.nextSibling.textContent) || c.getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255)")
        self.settle()

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def __call__(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:600])
        return answer["result"].get("value")

    def wait(self, condition, seconds=10):
        deadline = time.monotonic() + seconds
        while not self(condition):
            if time.monotonic() > deadline:
                raise RuntimeError(f"never true: {condition}")
            time.sleep(0.02)

    def settle(self):
        self("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def resize(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.settle()

    def theme(self, dark):
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def key(self, key, times=1, **more):
        for _ in range(times):
            text = {"Enter": "\r", " ": " "}.get(key)
            event = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key], **more}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def place(self, selector):
        """Its middle, once it is in view and nothing scrolls any more."""
        node = f"document.querySelector({json.dumps(selector)})"
        self(f"{node}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        last = None
        while True:
            self.settle()
            place = self(f"(() => {{ const r = {node}.getBoundingClientRect();"
                         " return [r.left + r.width / 2, r.top + r.height / 2]; })()")
            if place == last:
                return place
            last = place

    def click(self, selector):
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector):
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def focus(self, selector):
        self(f"document.querySelector({json.dumps(selector)}).focus()")

    def text(self, selector):
        return self(f"document.querySelector({json.dumps(selector)}).textContent")

    def screenshot(self, file, full=True, clip=None):
        """The whole page, what is in view, or `clip`: [left, top, width, height] in page coordinates."""
        if full:
            width, height = self("[innerWidth, document.scrollingElement.scrollHeight]")
            self.resize(width, height)
        part = dict(zip(("x", "y", "width", "height"), clip), scale=1) if clip else None
        data = self.call("Page.captureScreenshot", format="png", **({"clip": part} if part else {}))["data"]
        if full:
            self.resize(width)
        file.write_bytes(base64.b64decode(data))

    def mine(self, method):
        return [e["params"] for e in self.browser.events if e.get("method") == method and e.get("sessionId") == self.session]

    def problems(self):
        found = [p["exceptionDetails"] for p in self.mine("Runtime.exceptionThrown")]
        found += [p for p in self.mine("Runtime.consoleAPICalled") if p["type"] in ("error", "assert")]
        return found + [p["entry"] for p in self.mine("Log.entryAdded") if p["entry"]["level"] == "error"]

    def requests(self):
        return [p["request"]["url"] for p in self.mine("Network.requestWillBeSent")]

    def close(self):
        self.call("Page.close")
