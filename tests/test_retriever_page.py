"""The search page in headless Chromium, as a person uses it."""

from pathlib import Path

from browser import needs_chromium, opened
from playwright.sync_api import Page, expect
from retriever_process import build_index, document, serving

pytestmark = needs_chromium


def ask(page: Page, query: str) -> None:
    page.get_by_label("Query").fill(query)
    page.keyboard.press("Enter")


def test_a_query_shows_passages_and_stays_in_the_address(server: str) -> None:
    with opened(f"{server}/") as page:
        expect(page.locator("footer")).to_contain_text("64 passages · flat · minilm")
        expect(page.get_by_label("Token")).to_be_hidden()
        page.get_by_label("Passages", exact=True).fill("3")
        ask(page, "the poet of 東京")
        expect(page.locator("li")).to_have_count(3)
        expect(page.locator("#state")).to_contain_text("3 passages in")
        expect(page.locator("li").first).to_contain_text("1. 東京")
        expect(page.locator("li p").first).to_have_text(document(18)["contents"].split("\n")[1])
        page.reload()
        expect(page.locator("li")).to_have_count(10)
        assert page.get_by_label("Query").input_value() == "the poet of 東京"


def test_passages_are_shown_as_text(tmp_path: Path) -> None:
    sly = '<img src=x onerror="document.title=1"> <b>bold</b>\n<script>document.title = 2</script> a town'
    build_index(tmp_path / "index", [{"id": "<i>7</i>", "contents": sly}], kind="bm25")
    with serving(tmp_path / "index") as (_, url), opened(f"{url}/") as page:
        ask(page, "a town")
        expect(page.locator("li p")).to_have_text(sly.split("\n")[1])
        expect(page.locator("li div")).to_contain_text("id <i>7</i>")
        assert page.title() == "Passage search" and page.locator("li img, li b, li script, li i").count() == 0


def test_a_wanted_token_is_asked_for(word_index: Path) -> None:
    with serving(word_index, "--token", "secret") as (_, url), opened(f"{url}/") as page:
        ask(page, "a poet")
        expect(page.locator("#state")).to_contain_text("Authorization: Bearer TOKEN")
        page.get_by_label("Token").fill("secret")
        ask(page, "a poet")
        expect(page.locator("li")).to_have_count(8)


def test_the_page_fits_a_phone(server: str) -> None:
    with opened(f"{server}/?q=a+poet", width=360) as page:
        expect(page.locator("li")).to_have_count(10)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
