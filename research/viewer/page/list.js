// The list: rows of equal height, of which only those in view are elements, and only their pages are fetched.
// It may have hundreds of thousands.

import {ask, at, count, element, mark, short} from "./dom.js";
import {values} from "./filters.js";

const ROW = 82;  // px, as in base.css
const PAGE = 100;
const list = at("list"), holder = at("rows");

const keysOf = (entry) => ({a: entry.left?.key ?? "", b: entry.right?.key ?? ""});
export const same = (one, other) => Boolean(one && other) && one.a === other.a && one.b === other.b;

export class List {
  /** `opened(keys)` is called when a row is chosen. */
  constructor(compared, opened) {
    Object.assign(this, {compared, opened, total: 0, asked: 0, position: null, chosen: null});
    Object.assign(this, {pages: new Map(), fetching: new Map()});
    list.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(list);
    holder.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) this.choose(Number(row.dataset.position), true);
    });
  }

  /** Ask anew. With `keep`, what was in view stays in view; else the list begins at its top. */
  async reload({keep = false} = {}) {
    const mine = ++this.asked;
    const top = Math.floor(list.scrollTop / ROW);
    const anchor = this.chosen ?? (keep && this.entry(top) ? keysOf(this.entry(top)) : null);
    const before = this.chosen ? this.position : top, chosen = this.chosen;
    const first = await this.fetch(keep ? Math.floor(top / PAGE) : 0, anchor);
    if (mine !== this.asked) return;
    if (this.chosen !== chosen) return this.reload({keep});  // another one by now: where does that stand?
    this.total = first.total;
    this.pages = new Map([[first.offset / PAGE, first.entries]]);
    this.fetching.clear();
    if (this.chosen) this.position = first.position;
    this.say(first);
    holder.style.height = `${this.total * ROW}px`;
    if (!keep) list.scrollTop = 0;
    else if (list.scrollTop > 0 && first.position !== null && before !== null) {
      list.scrollTop += (first.position - before) * ROW;  // rows came in above: the view moves with them
    }
    this.draw();
    if (!first.complete) this.reload({keep: true});
  }

  fetch(page, locate) {
    return ask("list", {...values(), offset: page * PAGE, limit: PAGE, ...locate});
  }

  say({total, all, complete}) {
    const of = count(all, ...(this.compared ? ["question"] : ["trajectory", "trajectories"]));
    const shown = total === all ? of : `${total.toLocaleString("en")} of ${of}`;
    at("count").textContent = shown + (complete ? "" : ", still searching …");
    list.setAttribute("aria-busy", String(!complete));
  }

  entry(position) {
    return this.pages.get(Math.floor(position / PAGE))?.[position % PAGE];
  }

  draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(this.total, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
    const rows = [];
    for (let position = first; position < last; position++) {
      const entry = this.entry(position);
      if (entry) rows.push(this.row(entry, position));
      else this.need(Math.floor(position / PAGE));
    }
    holder.replaceChildren(...rows);
    if (this.position === null) list.removeAttribute("aria-activedescendant");
    else list.setAttribute("aria-activedescendant", `row-${this.position}`);
  }

  /** Fetch a page once; the promise is kept when it is there. */
  need(page) {
    if (!this.pages.has(page) && !this.fetching.has(page)) this.fetching.set(page, this.load(page));
    return this.fetching.get(page);
  }

  async load(page) {
    const pages = this.pages;
    const answer = await this.fetch(page, null);
    if (pages !== this.pages) return;
    this.pages.set(page, answer.entries);
    this.draw();
  }

  row(entry, position) {
    const row = entry.left ?? entry.right;
    const judged = this.compared ? [entry.left, entry.right] : [row];
    const marks = element("span", "marks", ...judged.map(mark));
    const made = element("div", "row", marks,
      element("span", "question", row.question || row.id || "no question"),
      element("span", "facts", ...this.facts(entry)));
    made.id = `row-${position}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-setsize", this.total);
    made.setAttribute("aria-posinset", position + 1);
    made.setAttribute("aria-selected", String(same(keysOf(entry), this.chosen)));
    made.dataset.position = position;
    made.style.top = `${position * ROW}px`;
    return made;
  }

  facts(entry) {
    const both = (value) => [...new Set([entry.left, entry.right].filter(Boolean).map(value))].join(" → ");
    const row = entry.left ?? entry.right;
    const step = [entry.left?.step, entry.right?.step].every((each) => each === undefined || each === null)
      ? row.method : `step ${both((each) => each.step ?? "–")}`;
    const texts = [
      step,
      `${both((each) => each.searches)} ${row.searches === 1 && !entry.right ? "search" : "searches"}`,
      `reward ${both((each) => each.reward === null ? "–" : short(each.reward))}`,
      row.split || row.source,
      row.control,
    ];
    return texts.filter(Boolean).map((text) => element("span", "", text));
  }

  /** Make the row at `position` the chosen one; false if the list became another one meanwhile. */
  async choose(position, open) {
    const pages = this.pages;
    await this.need(Math.floor(position / PAGE));
    if (pages !== this.pages) return false;
    const entry = this.entry(position);
    if (!entry) return true;  // the files hold less by now: the next look tells
    this.position = position;
    this.chosen = keysOf(entry);
    const top = position * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    this.draw();
    if (open) this.opened(this.chosen);
    return true;
  }

  /** To the next row (1) or the one before (-1). */
  async move(by) {
    const next = this.position === null ? Math.floor(list.scrollTop / ROW) : this.position + by;
    if (next < 0 || next >= this.total) return;
    if (!await this.choose(next, false)) await this.move(by);
  }

  /** Choose by keys, from the address; the next reload finds out where it stands. */
  adopt(keys) {
    this.chosen = keys;
    this.position = null;
  }

  /** Bring the chosen row into view. */
  reveal() {
    if (this.position === null) return;
    list.scrollTop = Math.max(0, this.position * ROW - list.clientHeight / 3);
    this.draw();
  }
}
