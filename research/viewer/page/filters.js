// The filter bar: its choices follow what there is, its values stand in the address.

import {at, element, short} from "./dom.js";

const form = at("filters");
const ANY = "*";  // an empty value is one that a trajectory can have: no control
const DEFAULTS = {sort: "step", order: "desc"};
const VERDICTS = {
  one: {[ANY]: "any", right: "right", wrong: "wrong", unjudged: "not judged"},
  two: {
    [ANY]: "any", differ: "they differ", gained: "A wrong, B right", lost: "A right, B wrong",
    both_right: "both right", both_wrong: "both wrong", unpaired: "in one run only",
  },
};
const SORTS = {step: "step", reward: "reward", searches: "searches", tokens: "tokens", question: "question"};
const GAIN = {gain: "reward of B − A"};
const NAMES = {control: {"": "real search"}};

const FIELDS = [...form.elements].map((field) => field.name).filter(Boolean);
const isSelect = (name) => form.elements[name].tagName === "SELECT";
export const SELECTS = FIELDS.filter(isSelect), INPUTS = FIELDS.filter((name) => !isSelect(name));

/** The filters that are set, as parameters of the API and of the address. */
export function values() {
  const set = {};
  for (const name of FIELDS) {
    const field = form.elements[name];
    const value = field.type === "number" && field.validity.badInput ? "" : field.value;
    const unset = field.tagName === "SELECT" ? ANY : "";
    if (value !== (DEFAULTS[name] ?? unset)) set[name] = value;
  }
  return set;
}

/** Set the bar, or some fields of it, from parameters of an address. */
export function restore(parameters, names = FIELDS) {
  for (const name of names) {
    const field = form.elements[name];
    const value = parameters.get(name) ?? DEFAULTS[name] ?? (field.tagName === "SELECT" ? ANY : "");
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.append(new Option(value || "none", value));  // of a step that is still to come
    }
    field.value = value;
  }
}

/** Fill the selects that never change. */
export function prepare(compared) {
  choices("verdict", compared ? VERDICTS.two : VERDICTS.one);
  choices("sort", compared ? {...SORTS, ...GAIN} : SORTS);
}

/** Offer the values that there are by now. A select of one value is no choice, and is hidden. */
export function offer(facets, ranges) {
  for (const [name, found] of Object.entries(facets)) {
    const field = form.elements[name];
    const chosen = field.value || ANY;
    const kept = field.options.length && field.value !== ANY ? [field.value] : [];
    const all = [...new Set([...found, ...kept])];
    choices(name, {[ANY]: "any", ...Object.fromEntries(all.map((each) => [each, label(name, each)]))}, all);
    field.value = kept.length ? kept[0] : ANY;
    field.closest("label").hidden = found.length < 2 && chosen === ANY;
  }
  for (const [name, range] of Object.entries(ranges)) {
    form.querySelector(`[data-range=${name}]`).hidden = !range || (range[0] === range[1] && !isSet(name));
    form.elements[`${name}_min`].placeholder = range ? short(range[0]) : "";
    form.elements[`${name}_max`].placeholder = range ? short(range[1]) : "";
  }
}

const label = (name, value) => NAMES[name]?.[value] ?? (value || "none");
const isSet = (name) => ["min", "max"].some((end) => form.elements[`${name}_${end}`].value !== "");

function choices(name, labels, order = []) {
  const field = form.elements[name];
  const keys = [...new Set([...(ANY in labels ? [ANY] : []), ...order, ...Object.keys(labels)])];
  const same = field.options.length === keys.length && keys.every((key, i) => field.options[i].value === key);
  if (same) return;  // a select that someone has open stays as it is
  const chosen = field.value;
  field.replaceChildren(...keys.map((key) => {
    const option = element("option", "", labels[key]);
    option.value = key;
    return option;
  }));
  if (keys.includes(chosen)) field.value = chosen;
}

/** Call `changed` soon after the last change. */
export function watch(changed) {
  let timer = 0;
  const later = (wait) => { clearTimeout(timer); timer = setTimeout(changed, wait); };
  form.addEventListener("input", () => later(200));
  form.addEventListener("submit", (event) => { event.preventDefault(); later(0); });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    restore(new URLSearchParams());
    later(0);
  });
}
