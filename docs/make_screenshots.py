"""Draw docs/page-light.png and page-dark.png: `python docs/make_screenshots.py URL` of a server.

As they are, of a server of these very docs: `whet index docs docs.whet --chunks paragraph:600`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from support.browser import browser

PROMPT = "A data space holds texts and their embeddings. SIFT chooses among the texts"

if __name__ == "__main__":
    for scheme in ("light", "dark"):
        with browser(900, 1320, dark=scheme == "dark") as driver:
            driver.get(sys.argv[1])
            driver.find_element(By.ID, "prompt").send_keys(PROMPT)
            driver.find_element(By.ID, "go").click()
            status = driver.find_element(By.ID, "status")
            WebDriverWait(driver, 300).until(lambda _, status=status: status.text == "Done.")
            driver.save_screenshot(str(Path(__file__).with_name(f"page-{scheme}.png")))
