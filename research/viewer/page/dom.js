// Small helpers: elements, numbers, requests. Everything shown is set as text, never as HTML.

export const at = (id) => document.getElementById(id);

/** An element with a class and children; strings become text. */
export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const count = (number, noun, nouns = noun + "s") =>
  `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;

/** A number with at most three decimals; what is none ("nan") as it is. */
export const short = (value) =>
  typeof value === "number" ? value.toLocaleString("en", {maximumFractionDigits: 3}) : String(value);

/** "right", "wrong", "unjudged", or "failed": it ended by an error. */
export function verdictOf(row) {
  if (row.error) return "failed";
  if (row.right === null) return "unjudged";
  return row.right ? "right" : "wrong";
}

const MARKS = {right: "✓", wrong: "✗", unjudged: "–", failed: "!"};

/** The sign of a verdict, with its word for those who do not see it. */
export function mark(row) {
  const verdict = row ? verdictOf(row) : "missing";
  const made = element("span", `mark ${verdict}`, row ? MARKS[verdict] : "·");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", verdict);
  made.title = verdict;
  return made;
}

/** The JSON answer of a route of the API. Throws an Error that says what was wrong. */
export async function ask(route, parameters = {}) {
  const reply = await fetch(`api/${route}?${new URLSearchParams(parameters)}`);
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}
