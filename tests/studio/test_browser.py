"""The studio in a real browser: started as its command, used by keyboard, on a phone and in the dark."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmdistill.generation.types import Drop, Example
from lmdistill.io import RunLock, append_line, write_json, write_lines, write_text

pytestmark = pytest.mark.browser

HOSTILE = "</p><script>window.owned=1</script><img src=x onerror=window.owned=1>\x1b[31m\u202e${window.owned=1}{{7*7}}"
WAIT = 60_000
"""Milliseconds: this machine may be busy."""


@pytest.fixture(scope="module")
def root(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two real runs, one at work, and one whose generated data are hostile."""
    folder = tmp_path_factory.mktemp("browser") / "runs"
    shutil.copytree(runs, folder)
    going = folder / "going"
    write_text(going / "recipe.yaml", "name: going\nmethod: gkd\ntraining:\n  max_steps: 40\n")
    append_line(going / "events.jsonl", '{"kind": "stage_started", "stage": "distil"}')
    for number in range(1, 6):
        append_line(going / "events.jsonl", event(number))
    hostile = folder / "written" / "generated" / "round-2"
    example = Example(id="x", prompt=HOSTILE, response=HOSTILE, task="odd")
    write_lines(hostile / "examples.jsonl", [json.dumps(example.row())])
    write_lines(hostile / "drops.jsonl", [json.dumps(Drop(example, by="verify", reason=HOSTILE).row())])
    write_json(hostile / "data_card.json", {"accepted": 1, "dropped": 1, "drops": {HOSTILE: {"count": 1}}})
    return folder


def event(number: int) -> str:
    values = {"step": number, "tokens": 100 * number, "loss": 5 - number / 10, "tokens_per_second": 50.0}
    return json.dumps({"kind": "step", "stage": "distil", **values})


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """The real command in a process of its own; Ctrl-C ends it with exit code 0."""
    command = [sys.executable, "-m", "lmdistill", "studio", str(root), "--no-browser", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    line = child.stdout.readline()
    assert line, child.stderr.read()
    yield json.loads(line)["url"]
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=60)
    assert (child.returncode, rest) == (0, ""), errors
    assert "Traceback" not in errors


@dataclass
class Visit:
    """A page, and what went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open_tab(self, name: str) -> None:
        """By its name."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def choose(self, label: str, value: str) -> None:
        """In a list of choices, as by keyboard."""
        box = self.page.get_by_label(label, exact=True)
        box.click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def settled(self) -> None:
        """Nothing was executed, nothing failed, and nothing was asked of anybody else."""
        assert self.page.evaluate("window.owned") is None
        assert not self.problems, self.problems


@contextmanager
def visit(browser: Any, address: str, width: int = 1280, scheme: str = "light") -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(WAIT)
    page = context.new_page()
    here = Visit(page)
    page.on("console", lambda message: here.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: here.problems.append(str(error)))
    page.on("request", lambda request: here.requests.append(request.url))
    page.on(
        "response", lambda found: here.problems.append(f"{found.status} {found.url}") if found.status >= 400 else None
    )
    page.goto(address)
    page.wait_for_selector("#runs table")
    yield here
    here.settled()
    assert [url for url in here.requests if not url.startswith((address, "data:", f"blob:{address}"))] == []
    context.close()


def test_runs_go_on_before_ones_eyes_and_any_are_compared(
    browser: Any, address: str, root: Path, tmp_path: Path
) -> None:
    with RunLock(root / "going"), visit(browser, address) as here:
        page = here.page
        row = page.locator("#runs tr", has_text="going")
        row.get_by_text("running").wait_for()
        assert row.get_by_text("5 of 40").is_visible()
        page.locator("#detail progress").wait_for()
        before = page.locator("#detail svg[role=img]").first.get_attribute("aria-label")
        for number in range(6, 9):
            append_line(root / "going" / "events.jsonl", event(number))
        row.get_by_text("8 of 40").wait_for()
        page.locator("#detail svg[aria-label*='4.2 at 800']").first.wait_for()
        assert page.locator("#detail svg[role=img]").first.get_attribute("aria-label") != before
        here.open_tab("Compare")
        page.locator("#comparison tbody th", has_text="agreement").first.wait_for()
        boxes = page.locator("#picked input[type=checkbox]")
        assert boxes.count() == 3
        page.get_by_label("going", exact=True).check()
        page.locator("#comparison", has_text="No evaluation yet that can be read: going").wait_for()
        assert page.locator("#comparison thead th").all_inner_texts()[0] == "measure"
        assert page.locator("#comparison svg[role=img]").count() == 2
        page.screenshot(path=tmp_path / "compare.png", full_page=True)
        here.open_tab("Signals")
        page.locator("#signals", has_text="signal bytes a position").wait_for()
    assert (tmp_path / "compare.png").stat().st_size > 20_000


def test_teacher_and_student_answer_and_a_typed_text_is_coloured_by_keyboard_alone(browser: Any, address: str) -> None:
    from playwright.sync_api import TimeoutError as NotThere

    # On a busy machine the page may lose an event; a visitor would load it again.
    for _ in range(2):
        try:
            chat_and_colour(browser, address)
        except NotThere:
            continue
        return
    chat_and_colour(browser, address)


def chat_and_colour(browser: Any, address: str) -> None:
    with visit(browser, address) as here:
        page, keys = here.page, here.page.keyboard
        reach(page, "[role=tab]:has-text('Chat')")
        keys.press("Enter")
        reach(page, "#message textarea")
        keys.type("Hello <b>there</b>")
        press(page, "#message textarea", page.locator("#chat-left .answer").first)
        for name in ("chat-left", "chat-right"):
            page.locator(f"#{name} .answer:is([data-state=ended], [data-state=cut])").wait_for()
            assert page.locator(f"#{name} .asked").inner_text().endswith("Hello <b>there</b>")
        assert "teacher" in page.locator("#chat-left h2").inner_text()
        assert "student" in page.locator("#chat-right h2").inner_text()
        here.open_tab("Heat map")
        reach(page, "#heat-text textarea")
        keys.type("Rivers carry <script>window.owned=1</script> water.")
        press(page, "button:has-text('Colour')", page.locator("#heat .t").nth(3))
        reach(page, "#heat .t")
        keys.press("ArrowRight")
        keys.press("ArrowRight")
        tops = page.locator("#heat .tops")
        assert tops.locator("li").count() == 10
        said = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert tops.inner_text().startswith(said)
        assert page.locator("#heat tbody tr").count() == page.locator("#heat .t").count() > 8
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def press(page: Any, selector: str, awaited: Any) -> None:
    """Press a button by keyboard until something appears: a press may be lost on a busy machine."""
    from playwright.sync_api import TimeoutError as NotThere

    for _ in range(4):
        reach(page, selector)
        page.keyboard.press("Enter")
        try:
            awaited.wait_for(timeout=20_000)
        except NotThere:
            continue
        return
    awaited.wait_for()


def reach(page: Any, selector: str) -> None:
    """Go on with the Tab key until an element of this selector has the focus."""
    for _ in range(60):
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", plain(selector)) and said(
            page, selector
        ):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def plain(selector: str) -> str:
    return selector.partition(":has-text(")[0]


def said(page: Any, selector: str) -> bool:
    text = selector.partition(":has-text('")[2].removesuffix("')")
    return text in (page.evaluate("document.activeElement.innerText") or "")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (360, "light")])
def test_hostile_data_are_only_shown_on_a_phone_in_either_theme(
    browser: Any, address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    with visit(browser, address, width, scheme) as here:
        page = here.page
        for name, selector in (("Compare", "#comparison table"), ("Chat", "#chat-left"), ("Heat map", "#heat-text"),
                               ("Signals", "#signals table"), ("Data", "#card dl")):  # fmt: skip
            here.open_tab(name)
            page.locator(selector).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        here.choose("Round", "round-2")
        row = page.locator("#rows article").first
        row.get_by_text("window.owned=1").first.wait_for()
        assert HOSTILE.replace("\x1b", "␛").replace("\u202e", "⟨U+202E⟩") in row.inner_text()
        page.get_by_label("dropped", exact=True).check()
        page.locator("#rows article .reason").wait_for()
        page.get_by_label("With this text in it", exact=True).fill("nowhere")
        page.locator("#rows", has_text="0 of 1 rows").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background, colour = (
            page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("body", "backgroundColor"), ("#rows .studio", "color"))
        )
        assert contrast(background, colour) > 7
        assert (luminance(background) < 0.1) == (scheme == "dark")
        page.screenshot(path=tmp_path / "data.png", full_page=True)


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_no_other_site_and_no_other_address_is_answered(address: str) -> None:
    host = address.removeprefix("http://").rstrip("/")
    assert host.startswith("127.0.0.1:")

    def ask(path: str, **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}

    status, headers = ask("/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert ask("/", Host="evil.example")[0] == 421
    assert ask("/config", Origin="http://evil.example")[0] == 403
    assert ask("/config", Origin="null")[0] == 403
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/info", "/docs", "/openapi.json", "/gradio_api/upload"):
        assert ask(path)[0] == 404
