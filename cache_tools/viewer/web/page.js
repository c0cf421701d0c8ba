// What every part of the page uses: elements, numbers as text, and the data from the server.
//
// Elements are made here and nowhere from markup: what comes from a corpus becomes a text node, so it
// cannot become a tag, an attribute or a script. There is no innerHTML in this package.

/** Make an element: properties (class, text, on…, aria-…, data-…) and children, which are nodes or text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Ask the server; an error's message is the server's. */
export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) query.append(name, one);
  }
  let answer;
  try {
    answer = await fetch(`/api/${path}?${query}`);
  } catch {
    throw new Error("The viewer does not respond. Check that 'logitcask view' is still running in its terminal, then reload this page.");
  }
  const content = answer.headers.get("content-type")?.includes("json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(content.error);
  return content;
}

export const problem = (error) => element("p", { class: "problem", role: "alert", text: error.message });

export const count = (value) => value.toLocaleString("en");
export const nats = (value) => (value === null || value === undefined ? "∞" : value.toFixed(value < 0.1 ? 3 : 2));
export const decimal = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

/** A share as percent with about three digits, however small. */
export function percent(share) {
  const value = share * 100;
  if (value === 0) return "0 %";
  if (value < 0.001) return `${value.toExponential(0)} %`;
  return `${value.toFixed(value >= 99.95 ? 0 : value >= 10 ? 1 : value >= 0.1 ? 2 : 3)} %`;
}

/** A token as one visible line: spaces at its ends are drawn. */
export function visible(text) {
  const inner = text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  return inner.replaceAll("\n", "↵") || "·";
}
