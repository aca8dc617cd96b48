// The page: follows the files, keeps its state in the address, and hears the keys.

import {ask, at, count} from "./dom.js";
import * as filters from "./filters.js";
import {List, same} from "./list.js";
import {show, showNothing, toggleAll} from "./trajectory.js";

const POLL_MS = 2000, HURRY_MS = 50, FOLLOW_MS = 120;
let list, names, version = null, open = null, following = 0, arrived;
let turn = new Promise((resolve) => { arrived = resolve; });  // of the first list

/** Actions run one after the other, each on what those before it fetched, the first one on the first list. */
function inTurn(action) {
  turn = turn.then(action).catch((error) => say(error.message, true));
}

function say(text, wrong = false) {
  at("state").textContent = text;
  at("state").classList.toggle("wrong", wrong);
}

// ---------------------------------------------------------------------------- what there is

async function follow() {
  let wait = POLL_MS;
  try {
    const state = await ask("state");
    if (!state.done) wait = HURRY_MS;
    if (!list) begin(state);
    tell(state);
    await take(state);
  } catch (error) {
    say(error instanceof TypeError ? "The viewer does not answer; trying again …" : error.message, true);
  }
  setTimeout(follow, wait);
}

async function take(state) {
  if (state.version === version) return;
  const first = version === null;
  filters.offer(state.facets, state.ranges);
  await list.reload({keep: !first});
  if (first) list.reveal();
  version = state.version;
  arrived();
}

function tell(state) {
  const share = Math.floor(100 * state.scanned / Math.max(1, state.size));
  const faults = state.faults.count ? [`${count(state.faults.count, "line")} left out`] : [];
  const wrong = [...faults, ...state.notices];
  at("state").title = [...state.faults.first, ...state.notices].join("\n");
  say([state.done ? "up to date" : `reading the files: ${share}%`, ...wrong].join("; "), wrong.length > 0);
}

// ---------------------------------------------------------------------------- one trajectory

async function opened(keys) {
  open = keys;
  remember();
  const sides = [keys.a, keys.b].slice(0, names.length);
  try {
    const found = await Promise.all(sides.map((key, side) => key ? ask("trajectory", {side, key}) : null));
    if (!same(open, keys)) return;  // another one was opened meanwhile
    show(found, names);
  } catch (error) {
    showNothing(error.message);
  }
  document.body.classList.add("reading");
}

function close() {
  open = null;
  remember();
  showNothing("Choose a trajectory: click one, or press j and Enter.");
  document.body.classList.remove("reading");
  at("list").focus();
}

/** Everything that a link needs stands in the address. */
function remember() {
  const parameters = new URLSearchParams(filters.values());
  for (const [name, key] of Object.entries(open ?? {})) if (key) parameters.set(name, key);
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
}

// ---------------------------------------------------------------------------- keys

async function move(by) {
  await list.move(by);
  clearTimeout(following);
  if (open) following = setTimeout(openChosen, FOLLOW_MS);
}

async function openChosen() {
  clearTimeout(following);
  following = 0;
  if (list.chosen) await opened(list.chosen);
}

async function toggle(selector) {
  if (following) await openChosen();
  toggleAll(selector);
}

const AT_ONCE = {
  "/": () => at("filters").elements.text.select(),
  "?": () => at("help").showModal(),
};
const IN_TURN = {
  j: () => move(1),
  k: () => move(-1),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  Enter: openChosen,
  e: () => toggle("details.passages"),
  t: () => toggle("details.tokens"),
  Escape: close,
};

function pressed(event) {
  const {target, key} = event;
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  if (target.matches("input, select")) {
    if (key === "Escape") at("list").focus();
    return;
  }
  if (key.startsWith("Arrow") && at("detail").contains(target)) return;  // there the arrows scroll
  if (key === "Enter" && target.matches("button, summary")) return;
  if (AT_ONCE[key]) AT_ONCE[key]();
  else if (IN_TURN[key]) inTurn(IN_TURN[key]);
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------------------- start

const address = new URLSearchParams(location.search);

/** Once it is known what there is to look at. */
function begin(state) {
  names = state.names;
  const compared = names.length > 1;
  const lettered = names.map((name, side) => `${"AB"[side]} ${name}`);
  at("names").textContent = compared ? lettered.join("   ") : names[0];
  at("names").title = state.paths.join("\n");
  filters.prepare(compared);
  filters.offer(state.facets, state.ranges);
  filters.restore(address, filters.SELECTS);
  list = new List(compared, opened);
  if (open) {
    list.adopt(open);
    opened(open);
  }
}

function start() {
  filters.restore(address, filters.INPUTS);  // now: later there may be something typed in them
  const keys = {a: address.get("a") ?? "", b: address.get("b") ?? ""};
  if (keys.a || keys.b) open = keys;
  else showNothing("Choose a trajectory: click one, or press j and Enter.");
  filters.watch(() => inTurn(() => { remember(); return list.reload(); }));
  document.addEventListener("keydown", pressed);
  at("help-button").addEventListener("click", AT_ONCE["?"]);
  at("more-button").addEventListener("click", ({currentTarget: button}) =>
    button.setAttribute("aria-expanded", String(button.ariaExpanded === "false")));
  at("detail").addEventListener("click", (event) => {
    if (event.target.dataset.action === "close") close();
  });
  follow();
}

window.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  say(event.reason.message, true);
});
start();
