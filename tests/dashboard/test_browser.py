"""The page in a real browser, end to end: open, slide, enlarge, compare, hide, attack, watch, cancel."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
expect = playwright.expect

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MILLISECONDS = 180_000  # an attack starts processes that import torch, on a machine that may be busy
PLAIN = re.compile(r"/run/plain")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def root(looked_at, tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("browser") / "copy"
    shutil.copytree(looked_at, copy)
    return copy


@pytest.fixture(scope="module")
def server(root) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "fl_sim.cli", "dashboard", str(root / "runs"), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--defended", str(root / "defended")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background may have them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture(scope="module")
def address(server) -> str:
    return server.stdout.readline().strip().rstrip("/")


@pytest.fixture(scope="module")
def browser(address) -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator["playwright.Page"]:
    context = browser.new_context(base_url=address, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(MILLISECONDS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    # What the server refuses on purpose shows up as a message of the browser's own.
    assert not [text for text in complaints if "Failed to load resource" not in text]


def is_drawn(canvas) -> bool:
    """Say whether a picture has more than one colour in it."""
    pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    return canvas.evaluate(f"c => new Set({pixels}.filter((_, i) => i % 4 === 0)).size > 1")


def test_open_slide_and_enlarge(page):
    page.goto("/")
    expect(page.get_by_role("article")).to_have_count(4)
    page.get_by_role("link", name="plain", exact=True).click()
    expect(page).to_have_url(PLAIN)
    expect(page.locator(".card")).to_have_count(3)
    slider = page.get_by_role("slider", name="round")
    page.goto("/run/plain?round=1")
    expect(page.locator("#round-text")).to_contain_text("Round 1 of 2")
    first = page.locator(".card .score").first.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#round-text")).to_contain_text("Round 2 of 2")
    expect(page).to_have_url(re.compile("round=2"))
    expect(page.locator(".card .score").first).not_to_have_text(first)
    canvas = page.locator(".card canvas[data-drawn]").first
    canvas.wait_for()
    assert is_drawn(canvas)
    page.locator(".pair button").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("private image")
    expect(dialog).to_contain_text("1 of 6")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 6")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_one_client_has_an_address_that_can_be_shared(page):
    page.goto("/run/plain?round=1")
    page.get_by_role("link", name="Client 1").click()
    expect(page).to_have_url(re.compile("client=1"))
    page.goto(page.url)  # as whoever gets the link
    expect(page.get_by_role("heading", name="Round 1, client 1")).to_be_visible()
    expect(page.locator("table").filter(has_text="guess: mean image")).to_be_visible()
    expect(page.locator("table.counts")).to_contain_text("recovered")
    expect(page.get_by_text(re.compile("he client says 6"))).to_be_visible()
    page.keyboard.press("]")
    expect(page.get_by_role("heading", name="Round 1, client 2")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_have_count(3)


def test_the_attackers_view_asks_for_no_truth(page):
    asked: list[str] = []
    page.goto("/run/plain?round=1")
    expect(page.locator(".card .score")).to_have_count(3)
    expect(page.get_by_role("heading", name="Leakage along training")).to_be_visible()  # the page is complete
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("a")
    expect(page).to_have_url(re.compile("view=attacker"))
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".card .score")).to_have_count(0)
    expect(page.get_by_text("Attacker’s view: what an honest")).to_be_visible()
    page.get_by_role("link", name="Client 0").click()
    expect(page.get_by_text("Labels that the attack attributes")).to_be_visible()
    assert "dB" not in page.locator("main").inner_text()
    assert "true" not in page.locator("table.counts").inner_text()
    page.get_by_role("link", name="Trade-off").click()
    expect(page.get_by_text("The attacker does not know what leaked.")).to_be_visible()
    fetched = [url for url in asked if "/api/" in url or "/pictures/" in url]
    # The page asks anew every two seconds, maybe once more between the listener and the key.
    switched = next(index for index, url in enumerate(fetched) if "view=attacker" in url)
    assert switched <= 2
    assert [url for url in fetched[switched:] if "view=attacker" not in url or "/private/" in url] == []


def test_side_by_side_and_the_tradeoff(page):
    page.goto("/run/plain?round=1")
    for client in ("Client 0", "Client 1"):
        page.locator(".card", has_text=client).get_by_role("button", name="+ compare").click()
    expect(page.locator("#num-compared")).to_have_text("2")
    page.get_by_role("link", name=re.compile("^Compare")).click()
    expect(page.locator(".column")).to_have_count(2)  # of two clients: no common rows
    page.goto("/run/plain?round=1&client=0")
    page.get_by_role("link", name="all beside this one").last.click()
    expect(page.locator("table.beside tbody tr")).to_have_count(6)
    expect(page.locator("table.beside thead")).to_contain_text("gaussian_noise")
    page.goto(page.url)
    expect(page.locator("table.beside tbody tr")).to_have_count(6)
    page.get_by_role("link", name="Trade-off").click()
    page.locator("a.point").first.click()
    expect(page).to_have_url(re.compile("/run/"))


def start_attack(page, name: str, steps: int) -> None:
    page.goto("/run/plain?round=1")
    page.get_by_text("Attack this recording").click()
    page.get_by_label("attack", exact=False).locator("visible=true").first.wait_for()
    form = page.locator(".attack-form form")
    form.locator("select[name=attack]").select_option(name)
    for client in (1, 2):
        form.get_by_label(f"client {client}").uncheck()
    form.get_by_text("hyper-parameters").click()
    form.locator("input[name=steps]").fill(str(steps))
    form.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", name="Under way")).to_be_visible()


def test_an_attack_is_started_watched_and_finishes(page, root):
    start_attack(page, "inverting_gradients", 1000)
    images = page.locator(".forming-images[data-step] canvas").first
    images.wait_for()
    assert is_drawn(images)
    option = page.locator("#attack option", has_text="inverting_gradients")
    expect(option).to_have_count(1, timeout=MILLISECONDS)
    expect(page.get_by_role("heading", name="Under way")).to_have_count(0, timeout=MILLISECONDS)
    page.locator("#attack").select_option(option.get_attribute("value"))
    expect(page.locator(".card .score")).to_have_count(1, timeout=MILLISECONDS)
    assert list((root / "runs/plain/attacks").glob("inverting_gradients-*/*/outcome.json"))
    assert not list((root / "runs/plain/attacks").glob("*/*/snapshot.safetensors"))


def test_an_attack_is_cancelled(page, root):
    start_attack(page, "inverting_gradients", 1_000_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Under way")).to_have_count(0, timeout=MILLISECONDS)


def test_empty_and_unknown_are_said(page):
    page.goto("/run/none")
    expect(page.get_by_role("alert")).to_contain_text("no run 'none'")
    page.goto("/?q=nothing-is-called-so")
    expect(page.get_by_text("No run matches.")).to_be_visible()
    page.goto("/compare")
    expect(page.get_by_text("Nothing to compare yet.")).to_be_visible()
    page.goto("/none")
    expect(page.get_by_text("There is no such page.")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/run/plain?round=1", "/run/plain?round=1&client=0", "/tradeoff"])
def test_a_phone_shows_all_without_sliding_sideways(browser, address, path):
    context = browser.new_context(base_url=address, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto(path)
    page.locator("main h1, main h2").first.wait_for()
    page.wait_for_function("!document.querySelector('.loading')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_ctrl_c_ends_server_and_attacks(page, server):
    start_attack(page, "inverting_gradients", 999_999)
    attack = next(child for child in psutil.Process(server.pid).children() if "attack" in child.cmdline())
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    assert not attack.is_running()
    expect(page.get_by_text("The server does not answer.").first).to_be_visible()
