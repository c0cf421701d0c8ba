// A sequence as text, each token on the colour of a number. Colours come in six bands, so that a reader can
// tell them apart and the legend can name them; the colours themselves stand in view.css (--heat-0 to --heat-5).

import { count, element, nats, percent, visible } from "./page.js";

const span = (low, high, unit) => (high === undefined ? `over ${low}${unit}` : low === undefined ? `under ${high}${unit}` : `${low}–${high}${unit}`);

function bandsOf(limits, unit = "") {
  return [...limits, undefined].map((limit, band) => span(limits[band - 1], limit, unit));
}

/** What tokens can be coloured by: its bands' limits in `limits`, and its numbers in a sequence's view. */
export const MEASURES = {
  surprise: {
    label: "Surprise", limits: [0.5, 1, 2, 4, 8], unit: "nats", show: (value) => `${nats(value)} nats`,
    help: "−ln of the probability that the teacher gives the gold token",
    values: (teacher) => teacher.surprise_nats, mean: (teacher) => teacher.mean_surprise_nats,
  },
  entropy: {
    label: "Entropy", limits: [0.5, 1, 2, 3, 5], unit: "nats", show: (value) => `${nats(value)} nats`,
    help: "of the teacher's whole distribution: how uncertain the teacher is",
    values: (teacher) => teacher.entropy_nats, mean: (teacher) => teacher.mean_entropy_nats,
  },
  kept: {
    label: "Kept mass", limits: [0.01, 0.05, 0.1, 0.25, 0.5], unit: "", show: percent, severity: (value) => 1 - value,
    bands: ["over 99 %", "95–99 %", "90–95 %", "75–90 %", "50–75 %", "under 50 %"],
    help: "probability of all kept tokens together",
    values: (teacher) => teacher.kept_mass, mean: (teacher) => teacher.mean_kept_mass,
  },
  disagreement: {
    label: "Disagreement", limits: [0.05, 0.1, 0.25, 0.5, 1], unit: "nats", show: (value) => `${nats(value)} nats`,
    help: "KL divergence between the two teachers, mean of both directions; the smallest value that the kept tokens allow",
    values: (pair) => pair.kl_nats, mean: (pair) => pair.mean_kl_nats, ofPairs: true,
  },
};

/** The teachers, or pairs of teachers, for which a measure is stored. */
export function subjects(view, measure) {
  const all = MEASURES[measure].ofPairs ? view.pairs.map((pair) => ({ name: `${pair.a} and ${pair.b}`, ...pair })) : view.teachers;
  return all.filter((subject) => MEASURES[measure].values(subject));
}

export function band(measure, value) {
  const { limits, severity = (same) => same } = MEASURES[measure];
  if (value === null || value === undefined) return limits.length; // infinite
  return limits.filter((limit) => severity(value) >= limit).length;
}

export function legend(measure) {
  const { limits, unit, help, bands = bandsOf(limits) } = MEASURES[measure];
  const items = bands.map((text, index) => element("li", { class: `heat heat-${index}`, text }));
  return element("div", { class: "legend" },
    element("ul", { "aria-label": `Colours, ${unit || "share"}` }, ...items, element("li", { class: "unasked", text: "not predicted" })),
    element("p", { text: unit ? `${help}, in ${unit}` : help }));
}

/** A sequence as rows to save: a column per teacher and measure, and one per pair. */
export function heatRows(view) {
  const columns = Object.entries(MEASURES).flatMap(([name, { values }]) => subjects(view, name).map((subject) => [`${name} ${subject.name}`, values(subject)]));
  return view.tokens.map((token) => ({
    token: token.index, id: token.id, text: token.text, position: token.position,
    ...Object.fromEntries(columns.map(([name, numbers]) => [name, numbers[token.index]])),
  }));
}

/** The text of a sequence; each token is an option that can be chosen. */
export function heatMap(view) {
  const tokens = view.tokens.map((token) => {
    const made = element("span", { class: "token", role: "option", "data-index": token.index, "data-place": token.index, "aria-selected": "false", tabindex: "-1" });
    if (token.masked) made.append(element("s", { text: visible(token.seen), title: "what the teacher read here" }));
    const text = token.text === "" ? "·" : token.text.replaceAll("\n", "↵\n");
    made.append(text);
    return made;
  });
  return element("div", { class: "text", role: "listbox", dir: "auto", "aria-orientation": "horizontal",
    "aria-label": `${count(view.tokens.length)} tokens; arrow keys move between them` }, ...tokens);
}

/** Colour a heat map by a measure of a teacher or pair. */
export function colour(map, view, measure, subject) {
  const { label, show, values } = MEASURES[measure];
  const numbers = subject ? values(subject) : null;
  for (const [index, token] of view.tokens.entries()) {
    const node = map.children[index];
    if (token.position === null || !numbers) {
      node.className = "token unasked";
      node.title = "No prediction is kept for this token";
      continue;
    }
    node.className = `token heat heat-${band(measure, numbers[index])}`;
    node.title = `${label} ${show(numbers[index])}`;
    node.ariaLabel = `${visible(token.text)}, ${node.title}`;
  }
}
