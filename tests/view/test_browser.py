"""The pages in a real Chromium, at a trained run of the embedded problem and at hostile text."""

from __future__ import annotations

import json
import re
import shutil
import time
from urllib.parse import quote

import pytest

from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.runs.directory import open_run
from tests.view.conftest import HOSTILE, first_question, hostile_texts, serving, trained, write_hostile_run

pytestmark = pytest.mark.slow

api = pytest.importorskip("playwright.sync_api", reason="playwright is missing; make test installs it")
RUN = "/run/published/main"
HOSTILE_RUN = f"/run/work/{quote('train-<b>hostile')}"
NARROW = {"width": 360, "height": 640}


def tree_of(project: Paths, iteration: int = 1) -> str:
    return f"{RUN}/iteration/{iteration}/tree?question={quote(first_question(project, iteration))}"


def untaken(page) -> None:
    """Nothing of the hostile texts ran or became an element."""
    assert page.evaluate("window.taken") is None
    assert page.locator("img, iframe, object, embed, main script, b:text-is('hostile')").count() == 0


def test_from_the_list_of_runs_to_a_token(page, project):
    page.goto("/")
    page.get_by_role("link", name="main", exact=True).click()
    assert page.locator("h1").inner_text() == "main"
    page.wait_for_selector(".plot .main-svg")
    assert page.locator("#health .sign").count() >= 10
    page.locator("#health summary").first.click()
    assert "engine" in page.locator("#health details[open] p").inner_text()
    page.locator("#iterations").get_by_role("link", name="1", exact=True).click()
    page.locator("#questions tbody a").first.click()
    page.wait_for_selector(".tokens > span")
    page.locator(".tokens > span").first.hover()
    assert re.search(r"probability 0\.\d+ .* advantage ", page.locator("#numbers").inner_text())


def test_runs_are_sorted_found_and_compared(page):
    page.goto("/")
    rows = page.locator("#list tbody tr")
    assert rows.count() == 2
    page.get_by_role("columnheader", name="Reward").click()
    first = rows.first.inner_text()
    page.get_by_role("columnheader", name="Reward").press("Enter")
    assert rows.first.inner_text() != first
    page.get_by_role("searchbox").fill("hostile")
    assert page.locator("#list tbody tr:visible").count() == 1
    page.get_by_role("searchbox").fill("")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare the chosen").click()
    page.wait_for_selector(".plot .main-svg")
    assert "rollout.temperature" in page.locator("table.params").inner_text()
    page.get_by_label("over").select_option("seconds")
    page.wait_for_url(re.compile("x=seconds"))
    page.wait_for_selector(".plot .main-svg")


def test_a_tree_by_keyboard_alone(page, project):
    page.goto(tree_of(project))
    page.wait_for_selector(".tokens > span")
    rows = page.locator("[role=treeitem]:visible")
    count = rows.count()
    first = page.locator("[role=treeitem][aria-expanded]").first
    node = first.get_attribute("data-node")
    first.focus()
    assert first.get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowLeft")
    assert rows.count() == count - int(first.get_attribute("data-below"))
    page.keyboard.press("ArrowRight")
    assert rows.count() == count
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.ariaLevel") == str(int(first.get_attribute("aria-level")) + 1)
    while page.evaluate("document.activeElement.dataset.node") != node:
        page.keyboard.press("ArrowLeft")  # folds, then goes to the parent
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement === document.querySelector('[role=treeitem]')")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('[role=treeitem]')].at(-1)")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=treeitem]:focus[data-state=whole]")
    page.keyboard.press("Shift+ArrowRight")
    api.expect(page.locator("#numbers")).to_contain_text("probability")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Fold all", exact=True).press("Enter")
    assert rows.count() == 3


def test_a_tree_in_other_colours(page, project):
    page.goto(tree_of(project))
    page.wait_for_selector(".tokens > span")

    def strengths() -> list[float]:
        return page.evaluate(
            "[...document.querySelectorAll('.tokens > span[data-i]')].map(t => +t.style.getPropertyValue('--c'))"
        )

    before: list[float] = []
    for name in ("advantage", "probability", "value", "entropy", "ratio"):
        page.get_by_role("radio", name=name).check()
        if name == "entropy":
            api.expect(page.locator("#numbers")).to_have_text("Computed.", timeout=60_000)
        limit = time.monotonic() + 20
        while (now := strengths()) == before:
            assert time.monotonic() < limit, f"{name} changes no colour"
            page.wait_for_timeout(50)
        before = now
    assert f"colour={name}" in page.url
    page.locator(".tokens > span").first.hover()
    api.expect(page.locator("#numbers")).to_have_text(re.compile(r"entropy [0-9.]+ nats · ratio"))


def test_two_iterations_side_by_side(page, project):
    page.goto(f"{tree_of(project)}&beside=1")
    page.wait_for_selector(".panel:nth-child(2) .tokens > span")
    boxes = [panel.bounding_box() for panel in page.locator(".panel").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.set_viewport_size(NARROW)
    boxes = [panel.bounding_box() for panel in page.locator(".panel").all()]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] < boxes[1]["y"]


def test_evaluation_and_its_flips(page, project):
    page.goto("/evaluation")
    page.get_by_role("link", name="warmup → final").click()
    better = re.search(r"(\d+) questions? worse, (\d+) better", page.locator(".verdict").inner_text())
    assert better and int(better[1]) + int(better[2]) == page.locator(".sample").count() > 0
    page.goto("/evaluation/published/main?cell=arithmetic-long&policy=final")
    assert page.locator(".sample").first.locator(".disagrees").count() == 1
    untaken(page)
    page.get_by_label("show").select_option("correct")
    page.wait_for_url(re.compile("only=correct"))
    assert page.locator(".outcome.other").count() == 0


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_text(page, number):
    text = HOSTILE[number]
    page.goto(f"{HOSTILE_RUN}/iteration/1/tree?question={quote(f'{text}-{number}')}")
    page.wait_for_selector(".tokens > span")
    assert page.locator("h1").text_content() == visible(text)
    row = page.locator("[role=treeitem]").first
    row.press("Enter")
    page.wait_for_selector("[role=treeitem][data-state=whole] .tokens > span")
    api.expect(row.locator(".cut")).to_have_count(0)
    assert row.locator(".tokens").text_content() == visible(text)
    grey = row.locator(".tokens > .out")  # every third token was sampled outside the mask
    assert grey.count() == (row.locator(".tokens > span").count() + 2) // 3
    page.locator(".tokens > span").first.hover()
    untaken(page)


READ = """async addresses => Promise.all(addresses.map(async address => {
    const page = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
    const every = [...page.querySelectorAll("*")];
    const handlers = every.flatMap(e => [...e.attributes]).filter(a => /^on|^srcdoc$/.test(a.name)).length;
    const strangers = page.querySelectorAll("main script, img, iframe, object, embed, svg, math, style, base").length;
    const links = every.filter(e => /^\\s*javascript/i.test(e.getAttribute("href"))).length;
    return [page.querySelector("h1").textContent, handlers + strangers + links];
}))"""


def test_a_hundred_hostile_texts_are_text(page, project, tmp_path):
    """In the browser's own reading of each page: the question as text, and no element or handler that it brought."""
    texts, paths = hostile_texts(100, seed=0), Paths(tmp_path)
    shutil.copytree(project.root / "params", tmp_path / "params")
    write_hostile_run(paths, "train-many", texts)
    run = "/run/work/train-many/iteration/1"
    with serving(paths) as origin:
        page.goto(f"{origin}{run}")
        assert page.locator("#questions tbody tr").count() == 100
        untaken(page)
        page.goto(f"{origin}{run}?q={quote('<')}")
        assert page.locator("#found mark").count() == min(200, 2 * sum("<" in text for text in texts))
        untaken(page)
        addresses = [f"{run}/tree?question={quote(f'{text}-{number}')}" for number, text in enumerate(texts)]
        assert page.evaluate(READ, addresses) == [[visible(text), 0] for text in texts]


def test_hostile_runs_are_listed_and_drawn_as_text(page):
    for path in (
        "/",
        HOSTILE_RUN,
        f"{HOSTILE_RUN}/iteration/1?q=script",
        f"/compare?run=published/main&run=work/{quote('train-<b>hostile')}&metric={quote('train/' + HOSTILE[1])}",
    ):
        page.goto(path)
        if "compare" in path or path == HOSTILE_RUN:
            page.wait_for_selector(".plot .main-svg")
            assert HOSTILE[1] in page.locator(".plot").filter(has_text="img").first.text_content()
        assert "hostile" in page.content()
        untaken(page)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        RUN,
        f"{RUN}/iteration/1",
        "tree",
        "/evaluation",
        "/analysis",
        HOSTILE_RUN,
        "/evaluation/published/main?cell=arithmetic-long&policy=final",
    ],
)
def test_narrow_windows_scroll_in_one_direction(page, project, path):
    page.set_viewport_size(NARROW)
    page.goto(tree_of(project) if path == "tree" else path)
    page.wait_for_load_state("networkidle")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= NARROW["width"], f"{path} is {wide} wide"


def test_a_run_under_way_is_followed(chromium, project, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(project.root, root)
    run = trained(Paths(root))
    identity = json.loads((run / "manifest.json").read_text())["identity"]
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(rows[:2]) + "\n")
    with serving(Paths(root)) as origin, open_run(run.parent, "train", identity, root):
        page = chromium.new_page()
        page.goto(f"{origin}/run/work/{run.name}")
        assert page.locator("#state .running").count() == 1
        assert page.locator("#state b").first.inner_text() == "2"
        with (run / "metrics.jsonl").open("a") as file:
            file.write(rows[2] + "\n")
        api.expect(page.locator("#state b").first).to_have_text("3", timeout=20_000)
        page.close()
