"""The report in a real browser, at desktop and phone width, light and dark; skipped where none is installed."""

import shutil

import pytest

from llmlab.study import report
from tests.study.planted import plant

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
# A browser that asks nothing of the network.
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if not (driver and binary):
        pytest.skip("no chromedriver with Chromium or Chrome is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    directory = plant(tmp_path_factory.mktemp("studies") / "activation", diverge=[("no norm", 2)])
    return report.write(directory)[0].as_uri()


def show(browser, address, width, scheme="light"):
    wide, high = WIDTHS[width]
    size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": width == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(address)


def find(browser, css):
    return browser.find_elements("css selector", css)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_has_no_errors(browser, address, width, scheme):
    show(browser, address, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[width][0]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return document.documentElement.dataset.theme") == scheme
    words = "return [...document.querySelectorAll('.badge')].map(x => x.textContent)"
    assert browser.execute_script(words) == ["▲better", "▲better", "▼worse", "=equivalent"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser, address, scheme):
    show(browser, address, "desktop", scheme)
    for css in ("body", ".about", ".badge", ".verdicts small", ".forest .value", "td small", ".canvas .x", "a"):
        element = find(browser, css)[0]
        colours = browser.execute_script(
            "const ground = (e) => { const c = getComputedStyle(e).backgroundColor;"
            "  return /rgba.*, 0\\)|color/.test(c) && e.parentElement ? ground(e.parentElement) : c; };"
            "return [getComputedStyle(arguments[0]).color, ground(arguments[0])]",
            element,
        )
        assert contrast(*map(channels, colours)) >= 4.5, (css, colours)


def channels(colour):
    return [int(part.split(".")[0]) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def contrast(first, second):
    """Of two colours, by WCAG 2."""

    def light(colour):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_axis_is_switched(browser, address):
    show(browser, address, "phone")
    shown = lambda: [f.get_attribute("data-axis") for f in find(browser, "#curves figure") if f.is_displayed()]
    assert shown() == ["flops"]
    for button, axis in zip(find(browser, ".switch button"), ("step", "tokens", "flops", "seconds")):
        browser.execute_script("arguments[0].click()", button)
        assert shown() == [axis] and button.get_attribute("aria-pressed") == "true"


def test_a_pointer_shows_values_and_a_legend_hides_arms(browser, address):
    show(browser, address, "desktop")
    hover = (
        "const c = document.querySelector('figure[data-axis=flops] .canvas'), b = c.getBoundingClientRect();"
        "c.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width * 0.999, clientY: b.top + 9}));"
        "return [...c.querySelectorAll('.tip tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    rows = browser.execute_script(hover)
    assert [name for name, _ in rows][0] == "no norm" and dict(rows)["relu2"].startswith("1.8")
    browser.execute_script("document.querySelector('figure[data-axis=flops] .legend button').click()")
    assert "gelu" not in dict(browser.execute_script(hover))
    hidden = "return getComputedStyle(document.querySelector('figure[data-axis=step] g[data-series=gelu]')).display"
    assert browser.execute_script(hidden) == "none"


def test_the_theme_is_switched(browser, address):
    show(browser, address, "phone", "dark")
    ground = lambda: browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    before = ground()
    browser.execute_script("document.querySelector('.theme').click()")
    assert ground() != before
