"""The server's page in headless Chromium: streaming, the dial, the comparison, keys, names for
screen readers, light and dark. `make test-page` installs what it needs but the browser.

$CHROMIUM names the browser; $PYWINA_SHOTS a folder in which pictures are kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_server import Server

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright (extra browser): make test-page"
)

QUESTION = "What is the capital of France?"
#: The dashed line's heights in the plot: all kept, half kept.
ALL, HALF = 2.0, 25.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium: install it, or set CHROMIUM")
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[Server]:
    server = Server(smollm2_path, "--sparsity", "0")
    yield server
    server.stop()


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    """What the condition gives as soon as it is true. (The page forbids playwright's own waiting
    for expressions: it evaluates strings.)"""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.03)
    return found


class Page:
    """The page, and everything it asked for and complained about."""

    def __init__(self, browser: Any, server: Server, **options: Any) -> None:
        size = {"width": 1100, "height": 900}
        self.context = browser.new_context(viewport=size, **options)
        self.server, self.tab = server, self.context.new_page()
        self.requests: list[Any] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on(
            "console",
            lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None,
        )
        self.tab.goto(f"http://127.0.0.1:{server.port}/")
        wait_for(lambda: self.text("#model"))

    def text(self, selector: str) -> str:
        return self.tab.text_content(selector)

    def count(self) -> int:
        return int(self.text("#count"))

    def status(self, wanted: str) -> None:
        wait_for(lambda: self.text("#status").startswith(wanted))

    def kept(self) -> list[float]:
        """Heights of the dashed line, token by token."""
        points = self.tab.get_attribute("#kept-line", "points") or ""
        return [float(point.split(",")[1]) for point in points.split()]

    def focus(self) -> str:
        return self.tab.evaluate("document.activeElement.id || document.activeElement.tagName")

    def shot(self, name: str) -> None:
        folder = os.environ.get("PYWINA_SHOTS")
        if folder:
            self.tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Callable[..., Page]]:
    opened: list[Page] = []

    def start(**options: Any) -> Page:
        opened.append(Page(browser, server, **options))
        return opened[-1]

    yield start
    for page in opened:
        base = f"http://127.0.0.1:{server.port}/"
        assert all(r.url.startswith((base, "data:")) for r in page.requests)
        assert page.complaints == []
        page.context.close()


def test_an_answer_streams_and_can_be_stopped(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.fill("#tokens", "400")
    page.tab.fill("#prompt", "Tell me a long story.")
    page.tab.press("#prompt", "Enter")
    answer = "#log .message:nth-child(2) span:last-child"
    first = wait_for(lambda: page.tab.locator(answer).count() and page.text(answer))
    wait_for(lambda: len(page.text(answer)) > len(first) + 20)
    assert page.text(answer).startswith(first) and page.text("#status") == "Answering …"
    assert page.tab.get_attribute("#log", "aria-busy") == "true"
    assert float(page.text("#rate")) > 0 and page.text("#kept") == "100.0%"
    page.tab.keyboard.press("Escape")
    page.status("Stopped.")
    wait_for(page.server.idle)
    stopped = page.count()
    assert 5 < stopped < 400 and page.tab.get_attribute("#log", "aria-busy") == "false"
    page.tab.fill("#tokens", "5")
    page.tab.fill("#prompt", "Go on.")
    page.tab.click("#send")
    page.status("Done.")
    sent = [r for r in page.requests if r.url.endswith("/v1/chat/completions")][-1]
    roles = [message["role"] for message in sent.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"] and page.focus() == "prompt"
    page.tab.click("#clear")
    assert page.text("#log") == ""


def test_the_dial_acts_on_the_next_token(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.fill("#tokens", "60")
    page.tab.fill("#prompt", "Tell me a long story.")
    page.tab.press("#prompt", "Enter")
    wait_for(lambda: page.count() >= 8)
    page.tab.focus("#sparsity")
    for _ in range(10):
        page.tab.keyboard.press("ArrowRight")
    assert page.text("#shown") == "50%"
    assert page.tab.get_attribute("#sparsity", "aria-valuetext") == "50% skipped"
    page.status("Done.")
    page.shot("dial")
    kept = page.kept()
    assert kept[:6] == [ALL] * 6 and page.text("#kept") == "50.0%"
    assert len(kept) == 60 and kept[-5:] == pytest.approx([HALF] * 5, abs=0.5)
    assert sorted(kept) == kept  # the dial was turned one way, and never back
    assert page.focus() == "sparsity"


def test_comparison_marks_the_first_difference(
    open_page: Callable[..., Page], server: Server
) -> None:
    page = open_page()
    page.tab.fill("#tokens", "24")
    page.tab.fill("#prompt", QUESTION)
    page.tab.focus("#compare")
    page.tab.keyboard.press("Enter")
    page.status("Done. Token ")
    page.shot("comparison")
    parts, marked = {}, {}
    for side, sparsity in (("dense", 0), ("sparse", 0.5)):
        pieces = page.tab.locator(f"#{side} > *")
        parts[side] = pieces.all_text_contents()
        tags = pieces.evaluate_all("all => all.map(each => each.tagName)")
        assert tags.count("MARK") == 1
        marked[side] = tags.index("MARK")
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "seed": 1}
        status, reply = server.post("/v1/chat/completions", body | {"sparsity": sparsity})
        assert status == 200
        assert "".join(parts[side]) == reply["choices"][0]["message"]["content"]
    at = marked["dense"]
    assert at == marked["sparse"] and f"Token {at + 1} is the first" in page.text("#status")
    assert parts["dense"][:at] == parts["sparse"][:at]
    assert parts["dense"][at] != parts["sparse"][at]
    assert page.focus() == "prompt"  # where the key that started it was, nothing can be focused


def test_equal_answers_have_no_mark(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.fill("#tokens", "2")
    page.tab.evaluate("document.getElementById('sparsity').value = 0.05")
    page.tab.fill("#prompt", QUESTION)
    page.tab.click("#compare")
    page.status("Done. Both answers are the same.")
    assert page.tab.locator("mark").count() == 0
    assert page.text("#dense") == page.text("#sparse") != ""


def test_keys_reach_everything_and_everything_has_a_name(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.tab.keyboard.press("Tab")
        reached.append(page.focus())
    order = ["sparsity", "log", "prompt", "send", "compare", "clear", "tokens", "seed"]
    assert reached[: len(order)] == order
    for role, name in (
        ("slider", "skipped"), ("log", "Conversation"), ("textbox", "Message"),
        ("button", "Send"), ("button", "Stop"), ("spinbutton", "at most"), ("spinbutton", "seed"),
        ("region", "Sparsity"), ("region", "Chat"), ("main", None), ("status", None),
        ("heading", "pywina"), ("img", "The last 200 tokens"),
    ):  # fmt: skip
        options = {"name": name} if name else {}
        assert page.tab.get_by_role(role, **options).count() == 1, (role, name)
    page.tab.fill("#prompt", "one")
    page.tab.press("#prompt", "Shift+Enter")
    page.tab.type("#prompt", "two")
    assert page.tab.input_value("#prompt") == "one\ntwo" and page.text("#status") == ""


_COLORS = """() => {
  const found = [];
  const seen = (start) => { for (let e = start; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c; } };
  const all = 'h1,h2,label,button:enabled,textarea,small,dt,dd,#shown,#model';
  for (const e of document.querySelectorAll(all))
    found.push([e.id || e.tagName, getComputedStyle(e).color, seen(e)]);
  return found;
}"""  # fmt: skip


def _luminance(color: str) -> float:
    channels = [int(c) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_light_and_dark_can_be_read(open_page: Callable[..., Page]) -> None:
    """Contrast of 4.5 and more everywhere (WCAG AA)."""
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        page.shot(scheme)
        colors = page.tab.evaluate(_COLORS)
        assert len(colors) > 15
        for name, text, ground in colors:
            dim, bright = sorted((_luminance(text), _luminance(ground)))
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (scheme, name, text, ground)
        grounds[scheme] = _luminance(colors[0][2])
    assert grounds["light"] > 0.8 and grounds["dark"] < 0.05


def test_small_screens_do_not_scroll_sideways(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.set_viewport_size({"width": 320, "height": 640})
    page.shot("small")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_errors_are_shown(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.tab.fill("#prompt", "word " * 5000)
    page.tab.press("#prompt", "Enter")
    wait_for(lambda: "context" in page.text("#status"))
    assert page.tab.get_attribute("#status", "class") == "error"
    page.complaints.clear()  # Chromium logs every reply that is an error
    page.tab.fill("#tokens", "3")
    page.tab.fill("#prompt", "Hi")
    page.tab.press("#prompt", "Enter")
    page.status("Done.")


def test_the_dial_begins_where_the_server_stands(browser: Any, smollm2_path: Path) -> None:
    server = Server(smollm2_path, "--sparsity", "0.4")
    try:
        page = Page(browser, server)
        assert page.text("#shown") == "40%" and page.tab.input_value("#sparsity") == "0.4"
        page.context.close()
    finally:
        server.stop()


def test_a_key_is_asked_for(browser: Any, smollm2_path: Path) -> None:
    server = Server(smollm2_path, key="sesame")
    try:
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{server.port}/")
        wait_for(lambda: tab.is_visible("#key"))
        tab.fill("#key", "sesame")
        tab.fill("#tokens", "3")
        tab.press("#prompt", "Enter")
        wait_for(lambda: tab.text_content("#status") == "Done.")
        context.close()
    finally:
        server.stop()
