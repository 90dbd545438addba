"""Draw docs/page-light.png and page-dark.png: `python docs/make_screenshots.py URL QUESTION…`.

The page as it is after the last question. The pictures in the documentation are of a server of the
manual of Valgrind, as Debian's package installs it, with SmolLM2:

    whet index /usr/share/doc/valgrind/html valgrind.whet && whet serve valgrind.whet --model smollm2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from support.browser import browser

SECONDS, PASSAGES = 3000, 3


def draw(url, questions, folder):
    """Ask the questions, and save the page in both color schemes."""
    with browser(900, 1680) as driver:
        driver.get(url)
        wait, steps = WebDriverWait(driver, SECONDS), driver.find_element(By.ID, "steps")
        steps.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * PASSAGES)
        for count, question in enumerate(questions, 1):
            driver.find_element(By.ID, "prompt").send_keys(question, Keys.CONTROL, Keys.ENTER)
            wait.until(lambda driver, count=count: is_answered(driver, count))
        driver.execute_script("scrollTo(0, 0)")
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            driver.save_screenshot(str(Path(folder) / f"page-{scheme}.png"))


def is_answered(driver, count):
    turns = driver.find_elements(By.CSS_SELECTOR, ".turn[aria-busy=false]")
    status = driver.find_element(By.ID, "status")
    assert "error" not in status.get_attribute("class"), status.text
    return len(turns) == count and status.text == "Done."


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2:], Path(__file__).parent)
