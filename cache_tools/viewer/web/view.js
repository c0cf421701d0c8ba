// The viewer: shows the page that the address describes (see address.js), and answers the keyboard.

import { arrive, followPlace, go, keepOptionsOnLinks, options, parts, replace, seekPlace, setOptions } from "./address.js";
import { ALIGNMENTS, alignmentLinks, alignmentPage, cutPage } from "./alignment.js";
import { ALL, LISTED, distribution } from "./distribution.js";
import { MEASURES, colour, heatMap, heatRows, legend, subjects } from "./heat.js";
import { leaveSearch, listOf, mark, neighbour, restoreList, setUp } from "./list.js";
import { overview } from "./overview.js";
import { ask, byId, count, element, problem } from "./page.js";
import { saveButtons } from "./save.js";

const ONE_COLUMN = "(max-width: 48rem)"; // as in view.css
const TYPED_INTO = "input, select, textarea";

let summary = null;
let encoding = null; // of the summary
let view = null; // of the sequence that is open
let map = null; // its heat map
let cut = null; // the alignment that is open, {name, number or null}
let step = 0; // counts what is shown; an answer that is late is discarded

const api = (...path) => [encoding.name, "sequences", ...path].map(encodeURIComponent).join("/");

async function start() {
  setUp({ open: (number) => encoding && go(encoding.name, number) });
  try {
    summary = await ask("summary");
  } catch (error) {
    byId("main").replaceChildren(problem(error));
    return;
  }
  byId("encoding").replaceChildren(...summary.encodings.map(({ name }) => element("option", { text: name })));
  byId("encoding-choice").hidden = summary.encodings.length < 2;
  byId("encoding").addEventListener("change", () => { location.hash = `#/${encodeURIComponent(byId("encoding").value)}`; });
  addEventListener("hashchange", route);
  addEventListener("keydown", keyed);
  keepOptionsOnLinks();
  followPlace(byId("main"));
  await route();
}

/** Use the encoding of a name, or the present one for none. */
function useEncoding(name) {
  const next = summary.encodings.find((candidate) => candidate.name === name) ?? encoding ?? summary.encodings[0];
  if (!next || next === encoding) return restoreList();
  encoding = next;
  byId("encoding").value = next.name;
  listOf(next);
}

async function route() {
  const mine = ++step;
  const [name, number, index] = parts();
  useEncoding(name);
  seekPlace();
  if (number === ALIGNMENTS && index !== undefined && encoding) return openAlignment(index, parts().slice(3), mine);
  cut = null;
  setOptions({ looked: null });
  if (number === undefined || !encoding) return openOverview();
  if (view === null || String(view.sequence_id) !== number || view.encoding !== encoding.name) await openSequence(number, mine);
  else repaint(byId("main").querySelector(".controls"));
  if (mine !== step || view === null) return;
  if (index === undefined) closePanel();
  else await openToken(Number(index), mine);
  if (mine === step) arrive(map);
}

async function openOverview() {
  view = null;
  mark(null);
  closePanel();
  const { content, fill } = overview(summary);
  byId("main").replaceChildren(...content);
  byId("main").scrollTop = 0;
  arrive(byId("main"), false);
  await fill();
  arrive(byId("main"));
}

/** Show an alignment, or with a number a sequence as both tokenizers cut it. */
async function openAlignment(name, [number, byte], mine) {
  view = null;
  cut = { name, number: number === undefined ? null : Number(number) };
  mark(cut.number);
  closePanel();
  if (number !== undefined) setOptions({ looked: null });
  byId("main").setAttribute("aria-busy", "true");
  let content;
  try {
    content = await (number === undefined ? alignmentPage(encoding.name, name) : cutPage(encoding.name, name, number, byte === undefined ? undefined : Number(byte)));
  } catch (error) {
    content = [problem(error)];
  }
  if (mine !== step) return;
  byId("main").removeAttribute("aria-busy");
  byId("main").replaceChildren(...content);
  byId("main").scrollTop = 0;
  if (options().get("place") === null) byId("main").querySelector(".worst")?.scrollIntoView({ block: "center" });
  arrive(byId("main"));
}

async function openSequence(number, mine) {
  byId("main").setAttribute("aria-busy", "true");
  let content;
  try {
    const answer = await ask(api(number));
    if (mine !== step) return;
    view = { ...answer, encoding: encoding.name };
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
  const predicted = view.tokens.filter((token) => token.position !== null).length;
  return [
    element("header", { class: "title" },
      element("h1", { text: `Sequence ${count(view.sequence_id)}` }),
      element("span", { class: "steps" },
        saveButtons(`sequence-${view.sequence_id}`, { rows: () => heatRows(view), node: () => map }),
        element("button", { type: "button", "aria-keyshortcuts": "k p", "aria-label": "Previous sequence", onclick: () => move(-1), text: "←" }),
        element("button", { type: "button", "aria-keyshortcuts": "j n", "aria-label": "Next sequence", onclick: () => move(1), text: "→" }))),
    element("p", { class: "quiet" }, "Document ", element("bdi", { class: "strong", text: view.document_id }),
      ` · ${view.split} · ${count(view.tokens.length)} tokens, ${count(predicted)} predicted`,
      view.absent.length ? ` · not captured yet by ${view.absent.join(", ")}` : ""),
    alignmentLinks(encoding, view.sequence_id),
    controls,
    map,
  ].filter((node) => node !== null);
}

/** Colour the tokens, and show the choices and their legend. */
function repaint(controls) {
  const [measures, measure] = shownMeasure();
  const choices = subjects(view, measure);
  const subject = choices.find(({ name }) => name === options().get("of")) ?? choices[0];
  const pick = (name) => (value) => { setOptions({ [name]: value }); repaint(controls); };
  const mean = (candidate) => meanOf(measure, candidate);
  const focused = controls.contains(document.activeElement) ? document.activeElement.value : null;
  controls.replaceChildren(
    segments("Colour by", measures.map((name) => [name, MEASURES[name].label, null]), measure, pick("colour")),
    choices.length > 1 || view.teachers.length > 1
      ? segments(MEASURES[measure].ofPairs ? "Between" : "Of", choices.map((choice) => [choice.name, choice.name, mean(choice)]), subject?.name, pick("of"))
      : element("p", { class: "quiet", text: subject ? `Mean ${mean(subject)}` : "" }),
    legend(measure));
  if (focused) [...controls.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
  colour(map, view, measure, subject);
  const open = map.querySelector("[aria-selected=true]");
  if (open) open.classList.add("chosen");
}

/** The measures for which this sequence has values, and the one that the address names, or the first. */
function shownMeasure() {
  const measures = Object.keys(MEASURES).filter((name) => subjects(view, name).length);
  const named = options().get("colour");
  return [measures, measures.includes(named) ? named : measures[0] ?? "surprise"];
}

function meanOf(measure, subject) {
  const mean = MEASURES[measure].mean(subject);
  return mean === null || mean === undefined ? "–" : MEASURES[measure].show(mean);
}

/** Buttons of which one is pressed: [value, label, amount or null] each. */
function segments(title, choices, selected, select) {
  const name = title.toLowerCase().replace(" ", "-");
  return element("fieldset", { class: "segments" }, element("legend", { text: title }),
    ...choices.map(([value, label, amount]) => element("label", {},
      element("input", { type: "radio", name, value, checked: value === selected, onchange: () => select(value) }),
      element("span", {}, label, amount ? element("small", { text: amount }) : null))));
}

async function openToken(index, mine) {
  const token = view.tokens[index];
  select(token);
  if (!token || token.position === null) {
    showPanel([element("p", { class: "quiet", text: "No prediction is kept for this token: the teachers read it as context only." })]);
    return;
  }
  let content;
  try {
    const answer = await ask(api(view.sequence_id, token.position), { top: options().get("top") === "all" ? ALL : LISTED });
    const more = (all) => { setOptions({ top: all ? "all" : null }); openToken(index, step); };
    content = distribution(answer, token, view.pairs, { more, close: leaveToken });
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
  if (cut && cut.number !== null) {
    if (cut.number + by >= 0) go(encoding.name, ALIGNMENTS, cut.name, cut.number + by);
    return;
  }
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
  else if (cut && cut.number !== null) go(encoding.name, ALIGNMENTS, cut.name);
  else if (view || cut) go(encoding.name);
  else leaveSearch();
}

/** Go to another token by a key; false for a key without a meaning. */
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
    replace(encoding.name, view.sequence_id, token.index); // a step makes no entry in the history
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
