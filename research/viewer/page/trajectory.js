// One trajectory, or two side by side: what was asked, how it ended, and its segments by author and tag.

import {at, count, element, mark, short, verdictOf} from "./dom.js";

const KINDS = ["think", "search", "result", "answer", "text"];
const ENDED = {answer: "answered", eos: "stopped without an answer", length: "cut by length",
  search_limit: "asked for one search too many"};
const detail = at("detail");

/** Show the trajectories of both sides (one may be null); `names` are those of the runs. */
export function show(sides, names) {
  const one = sides.find(Boolean);
  const compared = sides.length > 1;
  const columns = element("div", compared ? "columns two" : "columns",
    ...sides.map((side, number) => column(side, compared ? `${"AB"[number]} · ${names[number]}` : "")));
  detail.replaceChildren(bar(), heading(one), legend(), columns);
  detail.scrollTop = 0;
  document.title = one.question || one.id || "Trajectory";
}

/** Show a sentence in the place of a trajectory. */
export function showNothing(sentence) {
  detail.replaceChildren(bar(), element("p", "empty", sentence));
  document.title = "Trajectories";
}

/** Open all of a kind of <details>, or close them if all are open. */
export function toggleAll(selector) {
  const all = [...detail.querySelectorAll(selector)];
  const open = all.some((each) => !each.open);
  for (const each of all) each.open = open;
}

function bar() {
  const back = element("button", "back", "← List");
  back.type = "button";
  back.dataset.action = "close";
  return back;
}

function heading(one) {
  const golden = one.golden_answers.map((answer) => element("span", "golden", answer));
  const label = element("span", "label", golden.length > 1 ? "Golden answers" : "Golden answer");
  return element("header", "question",
    element("h2", "", one.question || one.id || "No question"),
    element("p", "", label, ...(golden.length ? golden : ["not recorded"])));
}

function legend() {
  const masked = element("span", "key masked", "hatched: injected, masked out of the loss");
  const keys = KINDS.map((kind) => element("span", `key ${kind}`, kind === "text" ? "untagged text" : kind));
  const made = element("p", "legend", ...keys, masked);
  made.setAttribute("aria-label", "Legend of the segments");
  return made;
}

function column(one, name) {
  const title = name ? element("h3", "run", name) : null;
  if (!one) return element("article", "", title, element("p", "empty", "This run has no such trajectory."));
  const made = element("article", "", title, outcome(one), maskBar(one), ...turns(one), ...rest(one));
  made.setAttribute("aria-label", name || "Trajectory");
  return made;
}

function outcome(one) {
  const reward = one.reward === null ? "no reward" : `reward ${short(one.reward)}`;
  return element("div", `outcome ${verdictOf(one)}`,
    element("p", "verdict", mark(one), element("strong", "", verdictOf(one)),
      element("span", "reward", reward), element("span", "reason", one.reward_reason)),
    one.error ? element("p", "fault", one.error) : null,
    element("p", "", element("span", "label", "Answer"),
      one.answer ? element("span", "given", one.answer) : element("span", "dim", "none")),
    element("p", "facts", ...facts(one).map((text) => element("span", "", text))));
}

function facts(one) {
  const trained = sum(one.segments.filter((each) => each.author === "model"));
  const all = sum(one.segments);
  return [
    one.step === null ? "" : `step ${one.step}`, one.split, one.source, one.method, one.control,
    one.split === "train" ? `sample ${one.sample}` : "",
    ENDED[one.finish] ?? one.finish,
    count(one.found_searches.length, "search", "searches"),
    one.gold ? `gold passages shown: ${one.gold.found} of ${one.gold.total}` : "",
    `${one.prompt_tokens} prompt + ${all} response tokens (${trained} sampled, ${all - trained} masked)`,
    one.id,
  ].filter(Boolean);
}

const sum = (segments) => segments.reduce((total, each) => total + each.token_ids.length, 0);

/** The whole response to scale: sampled and masked stretches. */
function maskBar(one) {
  const made = element("div", "mask-bar", ...one.segments.map((segment) => {
    const part = element("span", segment.author);
    part.style.flexGrow = segment.token_ids.length;
    part.title = `${segment.author}: ${count(segment.token_ids.length, "token")}`;
    return part;
  }));
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", "Sampled and masked stretches of the response, to scale");
  return made;
}

function turns(one) {
  let searched = 0;
  const made = one.segments.map((segment) => segment.author === "environment"
    ? turn(segment, `Result of search ${searched + 1}`, one.found_searches[searched++])
    : turn(segment, "Model", null));
  const left = one.found_searches.slice(searched);
  return [...made, ...left.map((search, number) => notInjected(search, searched + number))];
}

function notInjected(search, number) {
  return element("section", "turn environment",
    element("h4", "", element("span", "", `Search ${number + 1}`),
      element("span", "dim", "its result was not injected: no room was left")),
    found(search));
}

function turn(segment, title, search) {
  const note = segment.author === "environment" ? "masked" : "sampled";
  return element("section", `turn ${segment.author}`,
    element("h4", "", element("span", "", title),
      element("span", "dim", `${count(segment.token_ids.length, "token")}, ${note}`)),
    ...segment.pieces.map(piece),
    search ? found(search) : null,
    tokens(segment));
}

/** A piece of the response with its tags in a weaker tone. */
function piece({kind, text}) {
  const [, before, inside, after] = /^(\s*<[^<>\s]+>)?([^]*?)(<\/[^<>\s]+>\s*)?$/.exec(text);
  const made = element("div", `piece ${kind}`, ...[before, inside, after].map((part, place) =>
    part ? element("span", place === 1 ? "" : "tag", part) : null));
  made.setAttribute("aria-label", kind);
  made.setAttribute("role", "group");
  return made;
}

function found(search) {
  const gold = search.passages.filter((passage) => passage.gold);
  const unseen = gold.filter((passage) => !passage.shown).length;
  const golden = `${gold.length} gold` + (unseen ? `, ${unseen} not shown` : "");
  const summary = element("summary", "",
    search.error ? element("span", "badge failed", `failed: ${search.error}`)
      : element("span", "", count(search.passages.length, "passage")),
    gold.length ? element("span", "badge gold", golden) : null,
    element("span", "dim", `${Number(search.seconds).toFixed(2)} s`));
  const query = element("p", "query", element("span", "label", "Query"), search.query || "none");
  return element("details", "passages", summary, query, ...search.passages.map(passage));
}

function passage(one, number) {
  const badge = (wanted, kind, text, why) => {
    if (!wanted) return null;
    const made = element("span", `badge ${kind}`, text);
    made.title = why;
    return made;
  };
  return element("div", `passage${one.gold ? " gold" : ""}${one.shown ? "" : " unseen"}`,
    element("p", "title",
      element("span", "rank", `${number + 1}`), element("strong", "", one.title || "no title"),
      badge(one.gold, "gold", one.gold === "title" ? "gold title" : "gold",
        `the question's metadata names its ${one.gold}`),
      badge(one.answer, "answer", "has the answer", "a golden answer stands in it"),
      badge(!one.shown, "unseen", "not shown", "it did not fit into the injected block")),
    element("p", "text", one.text),
    element("p", "facts", element("span", "", `id ${one.id}`),
      one.score === null ? null : element("span", "", `score ${short(one.score)}`)));
}

/** Token ids with mask and probability; made when it is opened, for there may be thousands. */
function tokens(segment) {
  const masked = segment.author === "environment";
  const mean = segment.log_probs.reduce((total, each) => total + Number(each), 0) / segment.log_probs.length;
  const text = masked ? "Tokens (mask 0)" : `Tokens (mask 1, mean log-prob ${short(mean)})`;
  const made = element("details", "tokens", element("summary", "", text));
  made.addEventListener("toggle", () => {
    if (made.open && made.children.length === 1) made.append(tokenTable(segment, masked));
  });
  return made;
}

function tokenTable(segment, masked) {
  return element("ol", "", ...segment.token_ids.map((id, number) => {
    const logProb = segment.log_probs[number];
    const made = element("li", masked ? "masked" : "", element("b", "", String(id)),
      element("span", "", masked ? "mask 0" : rounded(logProb)));
    if (!masked) {
      made.style.setProperty("--surprise", `${Math.min(100, Math.round(-25 * Number(logProb)))}%`);
      made.title = `token ${id}, log-prob ${logProb}, probability ${short(Math.exp(Number(logProb)))}`;
    }
    return made;
  }));
}

/** "0" rather than "-0.00": the policy was sure. */
const rounded = (logProb) => logProb > -0.005 ? "0" : Number(logProb).toFixed(2);

function rest(one) {
  return [["Metrics", one.metrics], ["Metadata", one.metadata]].map(([title, values]) => {
    const rows = Object.entries(values).flatMap(([name, value]) => [element("dt", "", name),
      element("dd", "", typeof value === "number" ? short(value) : text(value))]);
    return element("details", "values", element("summary", "", title), element("dl", "", ...rows));
  });
}

const text = (value) => typeof value === "string" ? value : JSON.stringify(value);
