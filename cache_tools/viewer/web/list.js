// The list of sequences: all of them by page, or those that a search found so far. When the reader asks for more, a
// search continues where the last answer stopped. The address keeps the search and how far it has come.

import { options, setOptions } from "./address.js";
import { ask, byId, count, decimal, element } from "./page.js";
import { saveButtons } from "./save.js";

const PLACEHOLDERS = { text: "exact text", id: "exact id", number: "0" };
const FINISHED = "end";
const PAGE = 25; // sequences of a full page, as in search.py
const VALUES = { loss: "nats", kl: "nats", top1: "of tokens" };

let encoding = null; // of the summary
let search = null; // {by, query, teacher}; null to list all
let shown = []; // what the list shows
let pages = []; // where the earlier pages of the whole list began
let start = 0;
let until = null; // where a search that was continued stopped; FINISHED after its last shard
let following = null; // where the next answer goes on
let current = null; // the sequence that is open
let request = 0; // an answer to any request but the last is discarded

export function setUp({ open }) {
  byId("by").addEventListener("change", showFields);
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const by = byId("by").value, query = byId("query").value;
    if (by === "number") return open(Number.parseInt(query, 10) || 0);
    const teachers = [...byId("teachers").querySelectorAll("select")].map((select) => select.value);
    search = by in VALUES ? { by, teacher: teachers } : query ? { by, query } : null;
    begin();
  });
  byId("save-list").replaceChildren(saveButtons("sequences", { rows: () => shown }));
  byId("more").addEventListener("click", () => (search ? load(following, true) : turn(following)));
  byId("back").addEventListener("click", () => (search ? leaveSearch() : turn(pages.pop(), true)));
}

/** Show another encoding's sequences, from the first. */
export function listOf(chosen) {
  encoding = chosen;
  const several = encoding.teachers.length > 1;
  for (const option of byId("by").options) {
    option.disabled = (option.value in VALUES && !encoding.teachers.length) || (["kl", "top1"].includes(option.value) && !several);
  }
  return restore();
}

/** Show the list that the address describes, unless it is shown already. */
export function restoreList() {
  if (encoding && describedBy(options()) !== describedBy(new URLSearchParams(described()))) restore();
}

const LIST_OPTIONS = ["search", "query", "teacher", "after", "until"];
const describedBy = (query) => JSON.stringify(LIST_OPTIONS.map((name) => query.getAll(name)));

/** The list's options in the address, as pairs. */
function described() {
  if (!search) return start ? [["after", String(start)]] : [];
  return [["search", search.by], ...(search.query ? [["query", search.query]] : []), ...(search.teacher ?? []).map((name) => ["teacher", name]),
    ...(until ? [["until", String(until)]] : [])];
}

function describe() {
  const pairs = described();
  setOptions(Object.fromEntries(LIST_OPTIONS.map((name) => [name, pairs.filter(([key]) => key === name).map(([, value]) => value)])));
}

async function restore() {
  const query = options(), by = query.get("search"), text = query.get("query"), last = query.get("until");
  search = by in VALUES ? { by, teacher: query.getAll("teacher") } : by && text ? { by, query: text } : null;
  byId("by").value = search ? by : "text";
  showFields();
  byId("query").value = search?.query ?? "";
  for (const [i, select] of byId("teachers").querySelectorAll("select").entries()) select.value = search?.teacher?.[i] ?? select.value;
  until = null;
  start = search ? 0 : Number(query.get("after")) || 0;
  const before = Math.ceil(start / PAGE);
  pages = Array.from({ length: before }, (_, number) => Math.max(start - (before - number) * PAGE, 0));
  let newest = await load(start);
  while (last && newest && following !== null && (last === FINISHED || following < Number(last))) newest = await load(following, true);
}

/** Mark the open sequence. */
export function mark(number) {
  current = number;
  for (const link of byId("list").querySelectorAll("a")) {
    if (Number(link.dataset.number) === number) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

/** The sequence after or before one: in the list if it is there, by number otherwise. */
export function neighbour(number, step) {
  const place = shown.findIndex((item) => item.sequence_id === number);
  const next = place < 0 ? undefined : shown[place + step];
  if (next) return next.sequence_id;
  return search && place >= 0 ? null : number + step;
}

export function leaveSearch() {
  search = null;
  byId("query").value = "";
  begin();
}

function begin() {
  pages = [];
  start = 0;
  until = null;
  return load(0);
}

function turn(to, back = false) {
  if (!back) pages.push(start);
  start = to;
  return load(to);
}

/** Ask for a part of the list; false if another request has replaced this one or it failed. */
async function load(after, further = false) {
  const mine = ++request;
  byId("status").textContent = search ? "Searching …" : "Reading …";
  byId("more").disabled = byId("back").disabled = true;
  try {
    const answer = await ask(`${encodeURIComponent(encoding.name)}/find`, { ...(search ?? { by: "all" }), after });
    if (mine !== request) return false;
    shown = further ? [...shown, ...answer.found] : answer.found;
    if (search?.by in VALUES) shown.sort((a, b) => (b.value ?? Infinity) - (a.value ?? Infinity));
    following = answer.next;
    if (further) until = following ?? FINISHED;
    byId("status").textContent = statusOf(answer);
  } catch (error) {
    if (mine !== request) return false;
    [shown, following] = [further ? shown : [], null];
    byId("status").replaceChildren(element("span", { class: "problem", role: "alert", text: error.message }));
  }
  describe();
  byId("list").replaceChildren(...shown.map(item));
  byId("more").disabled = following === null;
  byId("more").textContent = search ? "Continue searching" : "Next page";
  byId("back").disabled = !search && !pages.length;
  byId("back").textContent = search ? "All sequences" : "Previous page";
  mark(current);
  byId("save-list").hidden = !shown.length;
  return true;
}

function statusOf(answer) {
  const total = Object.values(encoding.splits).reduce((sum, totals) => sum + totals.sequences, 0);
  if (!search) return shown.length ? `Sequences ${count(shown[0].sequence_id)} to ${count(shown.at(-1).sequence_id)} of ${count(total)}` : "This encoding has no sequences.";
  const found = shown.length ? `${count(shown.length)} found` : "Nothing found";
  return `${found} in ${count(answer.looked)} of ${count(answer.shards)} shards${following === null ? "" : " so far"}.`;
}

const shownValue = (value) => (value === null ? "∞" : search.by === "top1" ? `${decimal(value * 100, 0)} %` : decimal(value, 2));

function item(one) {
  const value = search?.by in VALUES ? shownValue(one.value) : null;
  return element("li", {}, element("a", { href: `#/${encodeURIComponent(encoding.name)}/${one.sequence_id}`, "data-number": one.sequence_id },
    element("span", { class: "line" },
      element("span", { class: "number", text: count(one.sequence_id) }),
      element("bdi", { class: "document", text: one.document_id }),
      value ? element("span", { class: "value", title: `${value} ${VALUES[search.by]}`, text: value }) : null),
    element("bdi", { class: "excerpt", dir: "auto", text: one.excerpt })));
}

function showFields() {
  const by = byId("by").value, written = by in PLACEHOLDERS;
  byId("query").hidden = !written;
  byId("query").placeholder = PLACEHOLDERS[by] ?? "";
  byId("query").title = by === "number" ? "" : "Upper and lower case are different";
  byId("query").inputMode = by === "number" ? "numeric" : "search";
  const wanted = written ? 0 : by === "loss" ? 1 : 2;
  byId("teachers").replaceChildren(...Array.from({ length: wanted }, (_, i) => {
    const options = encoding.teachers.map((teacher) => element("option", { text: teacher.name }));
    const select = element("select", { "aria-label": wanted > 1 ? `Teacher ${i + 1}` : "Teacher" }, ...options);
    select.selectedIndex = Math.min(i, options.length - 1);
    return select;
  }));
}
