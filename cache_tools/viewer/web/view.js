// The viewer: which page is shown, by the address behind the #, and the keyboard.
//
//     #/                            what the cache holds
//     #/{encoding}/{number}         a sequence as a heat map
//     #/{encoding}/{number}/{i}     and what the teachers said about its token i
//
// Every state has an address, so a link can be kept and the browser's back button works.

import { distribution } from "./distribution.js";
import { MEASURES, colour, heatMap, legend, subjects } from "./heat.js";
import { leaveSearch, listOf, mark, neighbour, setUp } from "./list.js";
import { overview } from "./overview.js";
import { ask, byId, count, element, problem } from "./page.js";

const ONE_COLUMN = "(max-width: 48rem)"; // as in view.css
const TYPED_INTO = "input, select, textarea";

let summary = null;
let encoding = null; // of the summary
let view = null; // of the sequence that is open
let map = null; // its heat map
let measure = "surprise";
let subject = null; // name of the teacher or pair that colours
let top = 10; // alternatives to list
let step = 0; // counts what is shown; an answer that is late is thrown away

const address = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;
const api = (...parts) => [encoding.name, "sequences", ...parts].map(encodeURIComponent).join("/");
const go = (...parts) => { location.hash = address(...parts); };

async function start() {
  setUp({ open: (number) => encoding && go(encoding.name, number) });
  try {
    summary = await ask("summary");
  } catch (error) {
    byId("main").replaceChildren(problem(error));
    return;
  }
  byId("encoding").replaceChildren(...summary.encodings.map((one) => element("option", { text: one.name })));
  byId("encoding-choice").hidden = summary.encodings.length < 2;
  byId("encoding").addEventListener("change", () => { choose(byId("encoding").value); go(); });
  addEventListener("hashchange", route);
  addEventListener("keydown", keyed);
  await route();
}

/** What an address stands for; one that is broken stands for the first page. */
function parts(hash) {
  try {
    return hash.slice(2).split("/").map(decodeURIComponent);
  } catch {
    return [];
  }
}

function choose(name) {
  const found = summary.encodings.find((one) => one.name === name) ?? summary.encodings[0];
  if (!found || found === encoding) return;
  encoding = found;
  byId("encoding").value = found.name;
  listOf(found);
}

async function route() {
  const mine = ++step;
  const [name, number, index] = parts(location.hash);
  choose(name);
  if (number === undefined || !encoding) {
    view = null;
    mark(null);
    closePanel();
    byId("main").replaceChildren(...overview(summary));
    return;
  }
  if (view === null || String(view.sequence_id) !== number || view.encoding !== encoding.name) await openSequence(number, mine);
  if (mine !== step || view === null) return;
  if (index === undefined) closePanel();
  else await openToken(Number(index), mine);
}

async function openSequence(number, mine) {
  byId("main").setAttribute("aria-busy", "true");
  let content;
  try {
    const found = await ask(api(number));
    if (mine !== step) return;
    view = { ...found, encoding: encoding.name };
    content = sequencePage();
  } catch (error) {
    if (mine !== step) return;
    view = null;
    content = [problem(error)];
  }
  mark(view && view.sequence_id);
  closePanel();
  byId("main").removeAttribute("aria-busy");
  byId("main").replaceChildren(...content);
  byId("main").scrollTop = 0;
  if (matchMedia(ONE_COLUMN).matches) byId("main").scrollIntoView();
}

function sequencePage() {
  map = heatMap(view);
  map.addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    if (token) go(encoding.name, view.sequence_id, token.dataset.index);
  });
  const first = view.tokens.find((token) => token.position !== null) ?? view.tokens[0];
  if (first) map.children[first.index].tabIndex = 0;
  const controls = element("div", { class: "controls" });
  repaint(controls);
  const asked = view.tokens.filter((token) => token.position !== null).length;
  return [
    element("header", { class: "title" },
      element("h1", { text: `Sequence ${count(view.sequence_id)}` }),
      element("span", { class: "steps" },
        element("button", { type: "button", "aria-keyshortcuts": "k p", "aria-label": "Previous sequence", onclick: () => move(-1), text: "←" }),
        element("button", { type: "button", "aria-keyshortcuts": "j n", "aria-label": "Next sequence", onclick: () => move(1), text: "→" }))),
    element("p", { class: "quiet" }, "Document ", element("bdi", { class: "strong", text: view.document_id }),
      ` · ${view.split} · ${count(view.tokens.length)} tokens, ${count(asked)} predicted`,
      view.absent.length ? ` · not captured yet by ${view.absent.join(", ")}` : ""),
    controls,
    map,
  ];
}

/** Colour the tokens, and show the choices and their legend. */
function repaint(controls) {
  const known = Object.keys(MEASURES).filter((name) => subjects(view, name).length);
  if (!known.includes(measure)) measure = known[0] ?? "surprise";
  const choices = subjects(view, measure);
  const chosen = choices.find((one) => one.name === subject) ?? choices[0];
  const pick = (change) => () => { change(); repaint(controls); };
  const focused = controls.contains(document.activeElement) ? document.activeElement.value : null;
  controls.replaceChildren(
    segments("Colour by", known.map((name) => [name, MEASURES[name].label, null]), measure, (name) => pick(() => { measure = name; })()),
    choices.length > 1 || view.teachers.length > 1
      ? segments(MEASURES[measure].ofPairs ? "Between" : "Of", choices.map((one) => [one.name, one.name, meanOf(one)]), chosen?.name, (name) => pick(() => { subject = name; })())
      : element("p", { class: "quiet", text: chosen ? `Mean ${meanOf(chosen)}` : "" }),
    legend(measure));
  if (focused) [...controls.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
  colour(map, view, measure, chosen);
  const open = map.querySelector("[aria-selected=true]");
  if (open) open.classList.add("chosen");
}

function meanOf(one) {
  const mean = MEASURES[measure].mean(one);
  return mean === null || mean === undefined ? "–" : MEASURES[measure].show(mean);
}

/** Choices of which one holds: [value, label, what it amounts to]. */
function segments(title, choices, chosen, choose) {
  const name = title.toLowerCase().replace(" ", "-");
  return element("fieldset", { class: "segments" }, element("legend", { text: title }),
    ...choices.map(([value, label, amount]) => element("label", {},
      element("input", { type: "radio", name, value, checked: value === chosen, onchange: () => choose(value) }),
      element("span", {}, label, amount ? element("small", { text: amount }) : null))));
}

async function openToken(index, mine) {
  const token = view.tokens[index];
  select(token);
  if (!token || token.position === null) {
    showPanel([element("p", { class: "quiet", text: "No prediction was kept for this token: the teacher read it without being asked about it." })]);
    return;
  }
  let content;
  try {
    const found = await ask(api(view.sequence_id, token.position), { top });
    const more = (number) => { top = number; openToken(index, step); };
    content = distribution(found, token, view.pairs, { more, close: leaveToken });
  } catch (error) {
    content = [problem(error)];
  }
  if (mine === step) showPanel(content);
}

function select(token) {
  for (const open of map.querySelectorAll("[aria-selected=true], [tabindex='0']")) {
    open.setAttribute("aria-selected", "false");
    open.classList.remove("chosen");
    open.tabIndex = -1;
  }
  if (!token) return;
  const node = map.children[token.index];
  node.setAttribute("aria-selected", "true");
  node.classList.add("chosen");
  node.tabIndex = 0;
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest" });
}

function showPanel(content) {
  const opening = byId("panel").hidden;
  byId("panel").replaceChildren(...content);
  byId("panel").hidden = false;
  document.body.classList.add("with-panel");
  if (opening) map.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
}

function closePanel() {
  byId("panel").hidden = true;
  byId("panel").replaceChildren();
  document.body.classList.remove("with-panel");
  map?.querySelector(".chosen")?.classList.remove("chosen");
}

function leaveToken() {
  go(encoding.name, view.sequence_id);
  map.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
}

function move(by) {
  if (!view) {
    document.querySelector("#list a")?.click();
    return;
  }
  const next = neighbour(view.sequence_id, by);
  if (next !== null && next >= 0) go(encoding.name, next);
}

const SEQUENCE_KEYS = { j: 1, n: 1, k: -1, p: -1 };

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches(TYPED_INTO);
  if (event.key === "Escape") return leave(typing);
  if (typing) return;
  if (event.key === "/") byId("query").hidden ? byId("by").focus() : byId("query").focus();
  else if (event.key in SEQUENCE_KEYS) move(SEQUENCE_KEYS[event.key]);
  else if (!view || !moveToken(event.key)) return;
  event.preventDefault();
}

function leave(typing) {
  if (typing) document.activeElement.blur();
  else if (!byId("panel").hidden) leaveToken();
  else if (view) go();
  else leaveSearch();
}

/** Go to another token by a key; false if the key means nothing. */
function moveToken(key) {
  const asked = view.tokens.filter((token) => token.position !== null);
  if (!asked.length) return false;
  const from = map.querySelector(".chosen");
  const index = from ? Number(from.dataset.index) : -1;
  const rightToLeft = getComputedStyle(map).direction === "rtl";
  const next = {
    [rightToLeft ? "ArrowLeft" : "ArrowRight"]: () => asked.find((token) => token.index > index),
    [rightToLeft ? "ArrowRight" : "ArrowLeft"]: () => asked.findLast((token) => token.index < index),
    ArrowDown: () => besides(from, asked, 1),
    ArrowUp: () => besides(from, asked, -1),
    Home: () => asked[0],
    End: () => asked.at(-1),
    Enter: () => view.tokens[document.activeElement.dataset?.index],
  }[key];
  if (!next || (key === "Enter" && !document.activeElement.matches(".token"))) return false;
  const token = next();
  if (token) {
    history.replaceState(null, "", address(encoding.name, view.sequence_id, token.index)); // a step is no visit
    route();
  }
  return true;
}

/** The token on the next line in a direction that stands nearest below or above. */
function besides(from, asked, direction) {
  if (!from) return asked[0];
  const here = from.getClientRects()[0];
  const lines = asked.map((token) => [token, map.children[token.index].getClientRects()[0]])
    .filter(([, box]) => box && (box.top - here.top) * direction > here.height / 2);
  const nearest = Math.min(...lines.map(([, box]) => Math.abs(box.top - here.top)));
  const line = lines.filter(([, box]) => Math.abs(Math.abs(box.top - here.top) - nearest) < here.height / 2);
  return line.sort(([, a], [, b]) => Math.abs(a.left - here.left) - Math.abs(b.left - here.left))[0]?.[0];
}

start();
