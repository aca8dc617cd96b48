"""The trajectory viewer in headless Chromium, as a person uses it."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from browser import needs_chromium, opened
from playwright.sync_api import expect
from run_folder import episode, make_run, write_episodes
from viewer_process import viewing

from research.episode.trajectory import Call, Passage
from research.files import append_line
from research.training.run_files import trajectory_path

pytestmark = needs_chromium
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script></think> & <b>bold</b>'


@contextmanager
def looking(*paths, address="", width=1200):
    """A page of the viewer; nothing may be logged as an error."""
    with viewing(*paths) as url, opened(url + address, width=width) as page:
        logged = []
        page.on("console", lambda message: logged.append(message.text) if message.type == "error" else None)
        expect(page.locator("#state")).to_contain_text("up to date")
        yield page
        assert logged == []


@pytest.fixture
def run(tmp_path):
    """Two steps; the searches of q2 found a gold passage, and one more that was not shown."""
    folder = make_run(tmp_path / "run")
    for step in (1, 2):
        write_episodes(
            folder, "train", step, *(with_passages(episode(n, n % 2, step=step)) for n in range(4))
        )
    return folder


def with_passages(one, contents="Oslo\nThe capital of y & z."):
    passages = [
        Passage("p1", contents, 0.5),
        Passage("p2", "Lima\nA city.", 0.4),
        Passage("p3", "Rome\nNot shown."),
    ]
    metadata = {**one.metadata, "supporting_ids": ["p1", "p3"]}
    return replace(one, calls=[Call("who", passages, shown=2)], metadata=metadata)


def rows(page):
    return page.locator("#list").get_by_role("option")


def test_the_list_is_filtered_and_the_filters_stay_in_the_address(run):
    with looking(run) as page:
        expect(rows(page)).to_have_count(8)
        expect(rows(page).first).to_contain_text("Question 0?")
        expect(rows(page).first.locator(".facts > span")).to_have_text(
            ["step 2", "1 search", "reward 0", "train"]
        )
        page.get_by_label("Verdict").select_option("right")
        expect(page.locator("#count")).to_have_text("4 of 8 trajectories")
        page.get_by_label("Greatest step").fill("1")
        expect(rows(page)).to_have_count(2)
        page.get_by_label("Text", exact=True).fill("QUESTION 3")
        expect(rows(page)).to_have_count(1)
        page.reload()
        expect(page.locator("#count")).to_have_text("1 of 8 trajectories")
        expect(page.get_by_label("Verdict")).to_have_value("right")
        assert page.get_by_label("Text", exact=True).input_value() == "QUESTION 3"
        page.get_by_role("button", name="Clear").click()
        expect(rows(page)).to_have_count(8)
        assert "?" not in page.url


def test_a_trajectory_is_shown_with_segments_masks_reward_and_gold(run):
    with looking(run) as page:
        rows(page).nth(1).click()
        detail = page.locator("#detail")
        expect(detail.get_by_role("heading", level=2)).to_have_text("Question 1?")
        expect(detail.locator(".verdict")).to_contain_text("rightreward 1right answer")
        expect(detail.locator(".question")).to_contain_text("xy & z")
        kinds = detail.locator(".piece").evaluate_all(
            "all => all.map((each) => each.getAttribute('aria-label'))"
        )
        assert kinds == ["think", "search", "result", "answer"]
        expect(detail.locator(".turn h4 .dim")).to_have_text(
            ["1 token, sampled", "1 token, masked", "1 token, sampled"]
        )
        stripes = "each => getComputedStyle(each).backgroundImage"
        assert "gradient" in detail.locator(".piece.result").evaluate(stripes)
        assert detail.locator(".piece.think").evaluate(stripes) == "none"
        expect(detail.locator(".outcome .facts")).to_contain_text("gold passages shown: 1 of 2")
        expect(detail.locator("details.passages > summary")).to_contain_text("2 gold, 1 not shown")
        page.keyboard.press("e")
        expect(detail.locator(".passage")).to_have_count(3)
        expect(detail.locator(".passage.gold .title")).to_have_text(
            ["1Oslogoldhas the answer", "3Romegoldnot shown"]
        )
        page.keyboard.press("t")
        expect(detail.locator(".tokens li")).to_have_text(["1-0.10", "2mask 0", "3-0.10"])


def test_the_keyboard_is_enough(run):
    with looking(run) as page:
        page.keyboard.press("j")
        page.keyboard.press("ArrowDown")
        expect(rows(page).nth(1)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("Enter")
        expect(page.locator("#detail h2")).to_have_text("Question 1?")
        page.keyboard.press("j")
        expect(page.locator("#detail h2")).to_have_text("Question 2?")
        page.reload()
        expect(page.locator("#detail h2")).to_have_text("Question 2?")
        expect(rows(page).nth(2)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("k")
        expect(page.locator("#detail h2")).to_have_text("Question 1?")
        page.keyboard.press("/")
        page.keyboard.type("question 3?jk")
        expect(page.locator("#count")).to_have_text("0 of 8 trajectories")
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page.locator("#detail h2")).to_have_count(0)


@contextmanager
def held_back(page, route):
    """The answers of a route of the API come at the end; yields what waits until one of them is asked for."""
    held, pattern, holding = [], f"**/api/{route}?*", True

    def until_asked():
        while not held:
            page.wait_for_timeout(10)

    page.route(pattern, lambda request: held.append(request) if holding else request.continue_())
    yield until_asked
    holding = False
    for request in held:
        request.continue_()
    page.unroute(pattern)


def test_keys_wait_for_the_answers_that_they_act_on(run):
    with looking(run) as page:
        for route in ("state", "list", "trajectory"):
            page.goto(page.url.partition("?")[0])
            with held_back(page, route) as until_asked:
                page.reload()
                for key in ("j", "ArrowDown", "Enter", "e", "j", "j", "t", "/"):
                    page.keyboard.press(key)
                page.keyboard.type("question 3")
                until_asked()
                expect(page.locator("#detail h2")).to_have_count(0)
            expect(page.locator("#detail h2")).to_have_text("Question 3?")
            expect(page.locator(".tokens[open]")).to_have_count(3)
            expect(page.locator("#count")).to_have_text("2 of 8 trajectories")
            expect(page.get_by_label("Text", exact=True)).to_have_value("question 3")


def test_keys_are_not_lost_while_the_list_is_asked_for_anew(run):
    chosen = "[aria-selected=true]"
    with looking(run) as page:
        with held_back(page, "list") as until_asked:
            page.get_by_label("Verdict").select_option("wrong")
            until_asked()
            page.locator("#list").focus()
            page.keyboard.press("j")
            page.keyboard.press("j")
        expect(page.locator("#count")).to_have_text("4 of 8 trajectories")
        expect(page.locator(chosen)).to_have_attribute("aria-posinset", "2")
        with held_back(page, "list") as until_asked:
            write_episodes(run, "train", 3, *(episode(number, 0.0, step=3) for number in range(4)))
            until_asked()
            page.keyboard.press("j")
            expect(page.locator(chosen)).to_have_attribute("aria-posinset", "3")
        expect(page.locator("#count")).to_have_text("8 of 12 trajectories")
        expect(page.locator(chosen)).to_have_attribute("aria-posinset", "7")
        page.keyboard.press("j")
        expect(page.locator(chosen)).to_have_attribute("aria-posinset", "8")


def test_new_steps_appear_and_the_selection_stays(run):
    with looking(run) as page:
        rows(page).nth(2).click()
        path = trajectory_path(run, 3, "train")
        for number in range(100):
            append_line(path, episode(number, 1.0, step=3).to_json())
        expect(page.locator("#count")).to_have_text("108 trajectories")
        expect(rows(page).first).to_contain_text("step 3")
        expect(page.locator("#detail h2")).to_have_text("Question 2?")
        page.keyboard.press("j")
        expect(page.locator("#detail h2")).to_have_text("Question 3?")
        expect(page.locator("[aria-selected=true]")).to_have_attribute("aria-posinset", "104")
        top = page.locator("[aria-selected=true]").bounding_box()["y"]
        write_episodes(run, "train", 4, *(episode(number, 1.0, step=4) for number in range(30)))
        expect(page.locator("#count")).to_have_text("138 trajectories")
        assert page.locator("[aria-selected=true]").bounding_box()["y"] == top


def test_a_long_list_is_fetched_where_it_is_looked_at(run):
    path = trajectory_path(run, 3, "train")
    for number in range(1000):
        append_line(path, episode(number, 1.0, step=3).to_json())
    with looking(run) as page:
        expect(page.locator("#count")).to_have_text("1,008 trajectories")
        page.locator("#list").evaluate("list => { list.scrollTop = 700 * 82; }")
        expect(page.locator("#row-703")).to_contain_text("Question 703?")
        assert rows(page).count() < 40
        page.locator("#row-703").click()
        expect(page.locator("#detail h2")).to_have_text("Question 703?")


def test_text_of_others_is_shown_as_text(tmp_path):
    one = with_passages(episode(1, 1.0, text=HOSTILE, passage=HOSTILE), f"{HOSTILE}\n{HOSTILE}")
    one.reward_reason = HOSTILE
    one.metadata |= {"question": HOSTILE, "golden_answers": [HOSTILE], HOSTILE: HOSTILE, "error": HOSTILE}
    path = tmp_path / "<i>some.jsonl"
    append_line(path, one.to_json())
    with looking(path) as page:
        expect(rows(page).first.locator(".question")).to_have_text(HOSTILE)
        rows(page).first.click()
        page.keyboard.press("e")
        for where in (
            "h2",
            ".golden",
            ".reason",
            ".fault",
            ".passage.gold .title strong",
            ".passage.gold .text",
        ):
            expect(page.locator(f"#detail {where}").first).to_have_text(HOSTILE)
        expect(page.locator("#detail .piece.result")).to_contain_text(HOSTILE)
        assert page.title() == HOSTILE and page.locator("img, i, body script").count() == 0


def test_two_runs_side_by_side(tmp_path):
    before, after = make_run(tmp_path / "before"), make_run(tmp_path / "after")
    write_episodes(before, "train", 1, *(episode(n, 0.0, step=1) for n in range(4)))
    write_episodes(after, "train", 1, *(episode(n, float(n < 2), step=1) for n in range(3)))
    with looking(before, after, address="?sort=question&order=asc") as page:
        expect(rows(page)).to_have_count(4)
        expect(rows(page).first.get_by_role("img")).to_have_count(2)
        page.get_by_label("Verdict").select_option("they differ")
        expect(page.locator("#count")).to_have_text("2 of 4 questions")
        rows(page).nth(1).click()
        expect(page.locator("article")).to_have_count(2)
        expect(page.locator("article h3")).to_have_text(["A · before", "B · after"])
        expect(page.locator(".verdict strong")).to_have_text(["wrong", "right"])
        page.reload()
        expect(page.locator(".verdict strong")).to_have_text(["wrong", "right"])
        page.get_by_label("Verdict").select_option("in one run only")
        expect(rows(page)).to_have_count(1)
        rows(page).first.click()
        expect(page.locator("article").nth(1)).to_contain_text("no such trajectory")


@pytest.mark.parametrize("sides", [1, 2])
def test_the_page_fits_a_narrow_window(run, sides):
    with looking(*[run] * sides, width=700) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        expect(page.get_by_label("Sort by")).to_be_hidden()
        page.get_by_role("button", name="More filters").click()
        expect(page.get_by_label("Sort by")).to_be_visible()
        rows(page).first.click()
        expect(page.locator("#detail h2")).to_be_visible()
        expect(page.locator("#list")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        page.get_by_role("button", name="← List").click()
        expect(page.locator("#list")).to_be_visible()


def test_a_run_that_has_written_nothing_yet(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("research: [")
    with looking(run) as page:
        expect(page.locator("#count")).to_have_text("0 trajectories")
        expect(page.locator("#state")).to_contain_text("config.yaml names no protocol")
        append_line(trajectory_path(run, 1, "train"), "no trajectory")
        write_episodes(run, "train", 1, episode(1, 1.0, step=1))
        expect(rows(page)).to_have_count(1)
        expect(page.locator("#state")).to_contain_text("1 line left out")
