"""Draw docs/page-light.png and page-dark.png: `python docs/make_screenshots.py URL QUESTION…`.

The page as it is after the last question. The pictures in the documentation are of a server of these
very docs, with SmolLM2:

    whet index docs docs.whet && whet serve docs.whet --model smollm2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from support.browser import browser

SECONDS = 600


def is_answered(driver, count):
    turns = driver.find_elements(By.CSS_SELECTOR, ".turn[aria-busy=false]")
    status = driver.find_element(By.ID, "status")
    assert "error" not in status.get_attribute("class"), status.text
    return len(turns) == count and status.text == "Done."


if __name__ == "__main__":
    url, *questions = sys.argv[1:]
    for scheme in ("light", "dark"):
        with browser(900, 1320, dark=scheme == "dark") as driver:
            driver.get(url)
            for count, question in enumerate(questions, 1):
                prompt = driver.find_element(By.ID, "prompt")
                prompt.send_keys(question, Keys.CONTROL, Keys.ENTER)
                wait = WebDriverWait(driver, SECONDS)
                wait.until(lambda driver, count=count: is_answered(driver, count))
            driver.execute_script("scrollTo(0, 0)")
            driver.save_screenshot(str(Path(__file__).with_name(f"page-{scheme}.png")))
