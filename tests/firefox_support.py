"""Firefox for tests, through WebDriver BiDi, which it speaks itself: Debian's has no driver for playwright.

Playwright's own way asks for commands that the long-term release does not have yet.
"""

import asyncio
import json
import re
import shutil
import subprocess
import threading
from base64 import b64decode
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
_START_S, _ANSWER_S = 90, 300
_LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


class Firefox:
    """A headless Firefox with one page, in a profile of its own in `folder`."""

    def __init__(self, folder: Path, **preferences: bool | int | str) -> None:
        assert FIREFOX is not None
        folder.mkdir(parents=True)
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
        (folder / "user.js").write_text("".join(lines))
        command = [FIREFOX, "--headless", "--remote-debugging-port=0", "--profile", str(folder)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self._loop, self._last = asyncio.new_event_loop(), 0
        self._session: aiohttp.ClientSession | None = None
        self.sent: list[str] = []  # methods and addresses of requests that may have a body, seen by the last command
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._socket = self._wait(self._connect(self._address()))
            self.command("session.new", capabilities={})
            self.command("session.subscribe", events=["network.beforeRequestSent"])
            self._page = self.command("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self.close()
            raise

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self.command("browsingContext.navigate", context=self._page, url=address, wait="complete")

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """What `script`, an expression or a function of `argument`, gives in the page; both as JSON."""
        called = f"typeof found === 'function' ? found({json.dumps(argument)}) : found"
        expression = (
            f"(async () => {{ const found = ({script}); return JSON.stringify(await ({called})) ?? 'null'; }})()"
        )
        target = {"context": self._page}
        answer = self.command("script.evaluate", expression=expression, target=target, awaitPromise=True)
        if answer["type"] == "exception":
            raise AssertionError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def wait_for(self, selector: str) -> None:
        """Wait until the page has an element that `selector` finds."""
        self.evaluate(
            "selector => new Promise(done => { const look = () => document.querySelector(selector) ? done() : "
            "setTimeout(look, 50); look(); })",
            selector,
        )

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        answer = self.command("browsingContext.captureScreenshot", context=self._page, origin="document")
        file.write_bytes(b64decode(answer["data"]))

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command of WebDriver BiDi."""
        result: dict[str, Any] = self._wait(self._command(method, params))
        return result

    def close(self) -> None:
        """End the browser."""
        if self._session is not None:
            self._wait(self._session.close())
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _address(self) -> str:
        assert self._process.stderr is not None
        timer = threading.Timer(_START_S, self._process.kill)
        timer.start()
        try:
            for line in self._process.stderr:
                if found := _LISTENING.search(line):
                    threading.Thread(target=self._process.stderr.read, daemon=True).start()  # or its pipe fills up
                    return found[1]
        finally:
            timer.cancel()
        raise AssertionError(f"Firefox did not start within {_START_S} s")

    async def _connect(self, address: str) -> aiohttp.ClientWebSocketResponse:
        self._session = aiohttp.ClientSession()
        return await self._session.ws_connect(f"{address}/session", max_msg_size=0, autoping=True)

    async def _command(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json()
            request = answer.get("params", {}).get("request", {"method": "GET"})
            if request["method"] not in ("GET", "HEAD"):
                self.sent.append(f"{request['method']} {request['url']}")
            if answer.get("id") == self._last:
                if answer["type"] == "error":
                    raise AssertionError(f"{method}: {answer['error']}: {answer['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)
