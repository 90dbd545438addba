"""The page for people, in a real browser."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
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
        settled(driver)
        yield driver


def one(driver, name):
    return driver.find_element(By.ID, name)


def until(driver, told):
    WebDriverWait(driver, SECONDS, 0.05).until(lambda _: one(driver, "status").text == told)


def settled(driver):
    WebDriverWait(driver, SECONDS, 0.05).until(lambda _: "fine-tuned" in one(driver, "about").text)


def ask(driver, prompt="bee honey"):
    one(driver, "prompt").clear()
    one(driver, "prompt").send_keys(prompt, Keys.CONTROL, Keys.ENTER)


def test_a_prompt_is_sharpened_by_keyboard_alone_and_all_is_shown(page):
    one(page, "steps").send_keys(Keys.HOME, *([Keys.ARROW_RIGHT] * 5))
    ask(page)
    until(page, "Done.")
    points = page.find_element(By.CSS_SELECTOR, "#sigma polyline").get_attribute("points").split()
    assert len(points) == 6 and one(page, "steps-shown").text == "5"
    heights = [float(point.partition(",")[2]) for point in points]
    assert heights == sorted(heights)  # σ falls, and a screen's y grows downward
    assert (
        len(page.find_element(By.CSS_SELECTOR, "#loss polyline").get_attribute("points").split())
        == 5
    )
    assert one(page, "base").text and one(page, "adapted").text
    assert one(page, "adapted-name").text == "Adapted: 5 steps"
    sources = page.find_elements(By.CSS_SELECTOR, "#sources li")
    counts = [int(s.text.split("×")[1].split()[0]) if "×" in s.text else 1 for s in sources]
    assert sum(counts) == 5 and all(source.text for source in sources)
    assert "train" in one(page, "time-legend").text
    assert page.get_log("browser") == []


def test_everything_that_can_be_touched_or_seen_has_a_name(page):
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
    until(page, "Stopped.")
    assert one(page, "go").is_enabled()


def test_an_error_is_told(page):
    ask(page, "bee " * 600)
    WebDriverWait(page, SECONDS, 0.05).until(lambda _: "context" in one(page, "status").text)
    assert one(page, "go").is_enabled()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1000])
def test_it_fits_in_light_and_dark(server, width, dark):
    with browser.browser(width, dark=dark) as driver:
        driver.get(server.url)
        settled(driver)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        paper = "return getComputedStyle(document.body).backgroundColor"
        light = sum(map(int, driver.execute_script(paper)[4:-1].split(","))) > 384
        assert light is not dark
        one(driver, "theme").click()
        assert (sum(map(int, driver.execute_script(paper)[4:-1].split(","))) > 384) is dark


def test_a_key_is_asked_for_where_one_is_needed(place):
    with serving.running(serving.app("whet-nano", place)) as client, browser.browser() as driver:
        driver.get(client.url)
        WebDriverWait(driver, SECONDS, 0.05).until(lambda _: one(driver, "key").is_displayed())
        one(driver, "key").send_keys(serving.token("legal"), Keys.TAB)
        settled(driver)
        assert "docs (27)" in one(driver, "space").text
