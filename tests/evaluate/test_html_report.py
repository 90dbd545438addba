"""The page of a run: its numbers are the run's, nothing in it can act, and a browser shows it."""

import json
import re

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support import browser, fake_runs
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document
from whet.errors import RunFolderError
from whet.evaluate.provenance import space_record
from whet.evaluate.report import html as html_report
from whet.evaluate.report.html import headline, near_copies, page, picks
from whet.evaluate.report.table import report
from whet.maths.statistics import mean_estimate
from whet.space.space import DataSpace

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    names = [f"{HOSTILE} {i}" for i in range(40)]
    return fake_runs.run(
        tmp_path_factory.mktemp("runs") / "run", sets=("arxiv", HOSTILE, "github"), names=names
    )


def embedded(text):
    return json.loads(
        re.search(r'<script type="application/json" id="run">(.*?)</script>', text)[1]
    )


def test_the_numbers_of_the_page_are_those_of_the_run(run):
    data = embedded(page(run))
    ours = report(run)
    everything, *sets = data["curves"]
    assert [curve["name"] for curve in sets] == sorted(["arxiv", HOSTILE, "github"])
    for i, method in enumerate(run.methods):
        for j, step in enumerate(run.steps):
            expected = mean_estimate(run.ratio(method, step))
            triple = [expected.value, expected.low, expected.high]
            assert everything["values"][i][j] == pytest.approx(triple, abs=1e-3)
            bits = [prompt["bits"][i][j] for prompt in data["prompts"]]
            assert bits == pytest.approx(run.bits(method, step), abs=0.06)
    for each, made in zip(ours.summary, data["summary"], strict=True):
        center = each.minus_nearest
        assert made["percent"][1] == pytest.approx(each.percent.median.value, abs=1e-3)
        expected = None if center is None else pytest.approx(center.trimmed.value, abs=1e-3)
        assert made["difference"][2] == expected
    line = data["table"][-1]
    assert line["base"] == pytest.approx(ours.lines[-1].base)
    assert line["paired"][3][0] == pytest.approx(ours.lines[-1].paired["sift"].value, abs=1e-3)


def test_a_set_may_have_the_name_of_all(tmp_path):
    run = fake_runs.run(tmp_path / "run", sets=("all", "all, by prompt"))
    data = embedded(page(run))
    assert [curve["name"] for curve in data["curves"]] == ["all prompts", "all", "all, by prompt"]
    assert [curve["n"] for curve in data["curves"]] == [24, 12, 12]


def test_the_picks_and_sigma_of_every_prompt_are_there(run):
    data = embedded(page(run))
    for i, prompt in enumerate(data["prompts"]):
        detail = prompt["detail"]
        for j, method in enumerate(run.methods):
            names = [data["documents"][detail["documents"][k]] for k in detail["picks"][j][0]]
            assert names == run.picks(prompt["id"], method) == picks(run)[prompt["id"]][method][0]
            sigma = [np.nan if s is None else s for s in detail["sigma"][j]]
            np.testing.assert_allclose(sigma, run.trajectories(method)[i], atol=1e-4)


def test_nothing_in_the_page_comes_from_a_network_or_ends_its_script(run):
    text = page(run)
    assert not re.findall(r"(?:src|href)=\S|@import|url\(|https?://(?!www.w3.org/2000/svg)", text
                          .replace("src=x onerror", ""))  # fmt: skip
    assert text.count("<script") == 2 and "default-src 'none'" in text


def test_the_headline_tells_method_number_interval_and_n(run):
    ours = report(run)
    line = next(line for line in ours.lines if line.name == "all, by prompt")
    sentence = headline(ours, "sift").replace("\N{NO-BREAK SPACE}", " ")
    own, pair = line.methods["sift"], line.paired["sift"]
    assert f"{own.value:.1f} % [{own.low:.1f}, {own.high:.1f}]" in sentence
    assert f"−{abs(pair.value):.1f} points [−" in sentence and "n = 24, 90 % intervals" in sentence


def test_picks_are_left_out_where_there_is_no_room_but_no_number_is(run, monkeypatch):
    whole = embedded(page(run))
    monkeypatch.setattr(html_report, "MAX_DETAILS", 9_000)  # a page of 8 MB takes a minute
    bounded = embedded(page(run))
    kept = [prompt["detail"] is not None for prompt in bounded["prompts"]]
    assert kept == sorted(kept, reverse=True) and 0 < sum(kept) < len(kept) == 24
    assert [p["bits"] for p in bounded["prompts"]] == [p["bits"] for p in whole["prompts"]]
    assert len(json.dumps(bounded)) < len(json.dumps(whole))


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    texts = ["alpha beta gamma", "alpha beta gamma", *(f"word{i} is here" for i in range(28))]
    documents = [Document(f"d{i}", text, {}) for i, text in enumerate(texts)]
    return DataSpace.build(documents, tmp_path_factory.mktemp("s") / "space", HashingEmbedder())


def test_texts_and_near_duplicates_are_shown_when_asked(space, tmp_path):
    run = fake_runs.run(tmp_path / "run", names=space.ids, space=space_record(space))
    data = embedded(page(run, space=space))
    known = dict(zip(space.ids, space.texts(space.rows), strict=True))
    for name, text in zip(data["documents"], data["texts"], strict=True):
        assert text == known.get(name) and (text is None) == (name == "dynamic")
    pairs = 0
    for detail in (prompt["detail"] for prompt in data["prompts"]):
        names = [data["documents"][k] for k in detail["documents"]]
        marked = {
            n for n, copy in zip(names, detail["near_copies"], strict=True) if copy is not None
        }
        assert marked == ({"d0", "d1"} if {"d0", "d1"} <= set(names) else set())
        pairs += bool(marked)
    assert pairs
    assert "texts" not in embedded(page(run))


def test_texts_of_another_data_space_are_refused(run, space):
    with pytest.raises(
        RunFolderError, match="is not the data space of .*pass the run's data space"
    ):
        page(run, space=space)


def test_near_duplicates_of_near_duplicates_are_one_group():
    angles = np.array([0.0, 0.2, 0.4, 2.0, 3.0, 3.1])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert near_copies(vectors, np.cos(0.25)) == [0, 0, 0, None, 1, 1]


@pytest.fixture(scope="module")
def shown(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "run.html"
    file.write_text(page(run), encoding="utf-8")
    with browser.browser() as driver:
        driver.get(file.as_uri())
        yield driver


def find(driver, css):
    return driver.find_elements(By.CSS_SELECTOR, css)


@browser.needed
def test_hostile_names_are_shown_as_text(run, shown):
    assert shown.title == run.folder.name
    assert HOSTILE in find(shown, "#set")[0].text and not find(shown, "img")
    assert HOSTILE in find(shown, "#prompt .picks code")[0].text
    assert shown.get_log("browser") == []  # nor an error of any kind


@browser.needed
def test_a_method_is_hidden_and_shown_again(run, shown):
    button = next(b for b in find(shown, "#methods button") if b.text == "NN")
    for pressed, count in (("false", len(run.methods) - 1), ("true", len(run.methods))):
        button.click()
        assert button.get_attribute("aria-pressed") == pressed
        assert len(find(shown, "#steps .curve")) == len(find(shown, "#prompt .picks")) == count


@browser.needed
def test_arrow_keys_tell_the_values_of_a_plot(run, shown):
    find(shown, "#steps svg")[0].send_keys(Keys.END)
    value = f"{mean_estimate(run.ratio('sift')).value:.1f}"
    [data] = find(shown, "#steps .tip")
    assert "after 10" in data.text and value in data.text
    find(shown, "#sets svg")[0].send_keys(Keys.ARROW_DOWN)
    assert find(shown, "#sets .tip p")[0].text == "all prompts"
    find(shown, "#sets svg")[0].send_keys(Keys.ESCAPE)
    assert not find(shown, "#sets .tip")


@browser.needed
def test_a_prompt_is_found_and_opened(run, shown):
    box = find(shown, "#find")[0]
    box.send_keys("prompt 17")
    [button] = find(shown, "#prompts button")
    button.send_keys(Keys.ENTER)
    assert find(shown, "#prompt h3")[0].text == "prompt 17"
    assert shown.current_url.endswith("#prompt%2017")
    strips = [len(find(strip, "span")) for strip in find(shown, "#prompt .strip")]
    assert strips == [len(run.picks("prompt 17", method)) for method in run.methods]
    assert "2×" in [tag.text for tag in find(shown, "#prompt .tag")]
    box.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(find(shown, "#prompts button")) == 24


@browser.needed
def test_whatever_takes_the_focus_has_a_name(shown):
    controls = find(shown, "button, select, input, svg, [tabindex='0']")
    assert len(controls) > 30
    assert [c.get_attribute("outerHTML") for c in controls if not c.accessible_name.strip()
            and c.is_displayed()] == []  # fmt: skip


@browser.needed
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen_light_and_dark(shown, width, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    shown.refresh()
    ground, ink, wide = shown.execute_script(
        "const s = getComputedStyle(document.documentElement);"
        "return [s.backgroundColor, s.color, document.documentElement.scrollWidth]"
    )
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ground, ink)]
    assert wide <= width and (light[0] < light[1]) == dark and abs(light[0] - light[1]) > 500
    assert len(shown.get_screenshot_as_png()) > 20_000 and find(shown, "#steps svg .curve")
