"""The web page, in a real browser."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from support import browser, serving

pytestmark = browser.needed
SECONDS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def server(place):
    with serving.running(serving.app("whet-nano", place, keys=None)) as client:
        yield client


@pytest.fixture(scope="module")
def page(server):
    with browser.browser() as driver:
        driver.get(server.url)
        wait_until_loaded(driver)
        yield driver


def item(driver, name):
    return driver.find_element(By.ID, name)


def last(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, f".turn:last-child {selector}")


def wait_for_status(driver, response):
    WebDriverWait(driver, SECONDS, 0.05).until(lambda _: item(driver, "status").text == response)


def wait_until_loaded(driver):
    WebDriverWait(driver, SECONDS, 0.05).until(lambda _: "fine-tuned" in item(driver, "about").text)


def ask(driver, prompt="bee honey"):
    item(driver, "prompt").clear()
    item(driver, "prompt").send_keys(prompt, Keys.CONTROL, Keys.ENTER)


def points(driver, figure):
    [line] = last(driver, f".{figure} polyline")
    return [float(point.partition(",")[2]) for point in line.get_attribute("points").split()]


def test_keyboard_alone_asks_and_all_results_are_shown(page):
    assert Select(item(page, "use")).first_selected_option.text == "automatic"
    item(page, "use").send_keys(Keys.ARROW_DOWN)  # both
    Select(item(page, "deadline")).select_by_visible_text("none")
    item(page, "steps").send_keys(Keys.HOME, *([Keys.ARROW_RIGHT] * 5))
    ask(page)
    wait_for_status(page, "Done.")
    heights = points(page, "sigma")
    assert len(heights) == 6 and item(page, "steps-shown").text == "5"
    assert heights == sorted(heights)  # σ falls, and a screen's y grows downward
    assert len(points(page, "loss")) == 5
    assert all(element.text for element in last(page, ".answer"))
    [name] = last(page, ".adapted-name")
    assert name.text.startswith("Adapted: 5 steps, ") and name.text.endswith(" in the context")
    [evidence] = last(page, ".evidence p")
    assert "5 steps on" in evidence.text and "in the context" in evidence.text
    sources = last(page, ".sources li")
    counts = [int(s.text.split("×")[1].split()[0]) if "×" in s.text else 1 for s in sources]
    assert sum(counts) == 5 and all(source.text for source in sources)
    assert "train" in last(page, ".time-legend")[0].text
    assert page.get_log("browser") == []


def test_a_conversation_goes_on_and_begins_anew(page):
    Select(item(page, "use")).select_by_value("context")
    ask(page, "bee wax")
    wait_for_status(page, "Done.")
    turns = page.find_elements(By.CSS_SELECTOR, ".turn")
    assert len(turns) == 2 and "in the context" in last(page, ".adapted-name")[0].text
    assert "step" not in last(page, ".adapted-name")[0].text
    assert not last(page, ".loss")[0].is_displayed() and last(page, ".time")[0].is_displayed()
    item(page, "new").click()
    assert not page.find_elements(By.CSS_SELECTOR, ".turn")
    Select(item(page, "use")).select_by_value("both")


def test_every_control_and_figure_has_an_accessible_name(page):
    touched = page.find_elements(By.CSS_SELECTOR, "textarea, select, input, button, svg, ol, form")
    shown = [element for element in touched if element.is_displayed()]
    assert len(shown) >= 9
    for element in shown:
        assert element.accessible_name, element.get_attribute("outerHTML")[:80]


def test_repeats_are_marked(page):
    marked = page.execute_async_script(
        "const done = arguments[0]; import('/page.js').then((page) => {"
        "  const pieces = page.marked('one two three four five', new Set(['one two three four']));"
        "  done(pieces.map((piece) => piece.textContent ?? piece)); });"
    )
    assert marked == ["", "one two three four", " five"]


def test_escape_stops(page):
    ask(page, "bee wax")
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for_status(page, "Stopped.")
    assert item(page, "go").is_enabled()


def test_error_is_shown(page):
    ask(page, "bee " * 600)
    WebDriverWait(page, SECONDS, 0.05).until(lambda _: "context" in item(page, "status").text)
    assert item(page, "go").is_enabled()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1000])
def test_page_fits_in_light_and_dark(server, width, dark):
    with browser.browser(width, dark=dark) as driver:
        driver.get(server.url)
        wait_until_loaded(driver)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        paper = "return getComputedStyle(document.body).backgroundColor"
        light = sum(map(int, driver.execute_script(paper)[4:-1].split(","))) > 384
        assert light is not dark
        item(driver, "theme").click()
        assert (sum(map(int, driver.execute_script(paper)[4:-1].split(","))) > 384) is dark


def test_page_asks_for_an_api_key(place):
    with serving.running(serving.app("whet-nano", place)) as client, browser.browser() as driver:
        driver.get(client.url)
        WebDriverWait(driver, SECONDS, 0.05).until(lambda _: item(driver, "key").is_displayed())
        item(driver, "key").send_keys(serving.token("legal"), Keys.TAB)
        WebDriverWait(driver, SECONDS, 0.05).until(
            lambda _: "docs (27)" in item(driver, "space").text
        )
