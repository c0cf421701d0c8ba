// The statistics of an encoding on the first page: the report's data about a sample of positions, which the server
// reads in the background while this part shows how far it is.

import { histogramChart, placesChart, plain, reliabilityChart, round, seriesClass } from "./charts.js";
import { band, legend } from "./heat.js";
import { ask, count, decimal, element, nats, percent, problem, visible } from "./page.js";
import { saveButtons } from "./save.js";

const POLL_MS = 400;

/** Fill a section with the statistics of an encoding once they are ready; ends early when the section has gone. */
export async function fillSample(section, encoding) {
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Share of the sample that has been read" });
  section.replaceChildren(element("p", { class: "quiet", text: "Reading a sample of positions for the statistics below …" }), bar);
  try {
    for (;;) {
      const answer = await ask(`${encodeURIComponent(encoding.name)}/sample`);
      if (!section.isConnected) return;
      if (answer.finished) return section.replaceChildren(...(answer.sample ? statistics(answer, encoding) : unfinished(encoding)));
      bar.value = answer.share;
      await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
    }
  } catch (error) {
    section.replaceChildren(problem(error));
  }
}

function unfinished(encoding) {
  if (!encoding.teachers.length) return [element("p", { class: "quiet", text: "No teacher has been captured for this encoding yet." })];
  return [element("p", { class: "quiet", text: "No teacher has finished a shard yet, so there are no statistics. Reload the page later." })];
}

function statistics({ sample, num_groups: numGroups }, encoding) {
  const { size, teachers } = sample;
  const part = size.positions < size.of_positions ? `a sample of ${count(size.positions)} of ${count(size.of_positions)}` : `all ${count(size.positions)}`;
  return [
    element("p", { class: "quiet", "data-place": "sample", text:
      `The statistics below are measured on ${part} positions (seed ${size.seed}). The table above covers everything that has been captured.` }),
    element("div", { class: "charts", "data-place": "charts" }, ...charts(teachers)),
    passages(sample, encoding),
    groups(sample, numGroups),
    teachers.length > 1 ? agreement(sample) : null,
  ].filter((node) => node !== null);
}

const seriesLegend = (teachers) => element("ul", { class: "series", "aria-label": "Colours of the teachers" },
  ...teachers.map((teacher, number) => element("li", { class: seriesClass(number) }, element("i", { class: "dot" }), teacher.name)));

function charts(teachers) {
  const named = (list) => teachers.flatMap((teacher) => list(teacher).map((row) => ({ teacher: teacher.name, ...row })));
  const bins = (key) => named((teacher) => teacher[key].shares.map((share, bin) =>
    ({ from: teacher[key].edges[bin], to: teacher[key].edges[bin + 1], share_of_positions: share })));
  const calibrated = teachers.filter((teacher) => teacher.calibration);
  const figure = (...parts) => chartCard(teachers, ...parts);
  return [
    figure("Loss by position", "loss-by-position", placesChart("Loss and entropy by position", teachers.map((teacher) => teacher.places)),
      "Solid: loss on the gold token. Dotted: entropy. Where both are level, more context no longer helps.", () => named((teacher) => teacher.places)),
    figure("Calibration", "calibration", reliabilityChart("Accuracy over confidence", teachers.map((teacher) => teacher.calibration)),
      ["On the dashed line, a confidence of 70 % is right 70 % of the time.", ...calibrated.map(calibrationText)].join(" "),
      () => named((teacher) => teacher.calibration?.bins ?? [])),
    figure("Entropy", "entropy", histogramChart("Histogram of the entropy", teachers.map((teacher) => teacher.entropy), "entropy, nats", plain),
      "Near 0, one token is almost certain.", () => bins("entropy")),
    figure("Kept mass", "kept-mass", histogramChart("Histogram of the kept mass", teachers.map((teacher) => teacher.kept_mass), "kept mass", round),
      "Probability of the kept tokens together; the rest is stored as one number.", () => bins("kept_mass")),
  ];
}

const calibrationText = ({ name, calibration }) =>
  `${name}: right ${percent(calibration.accuracy)} at a mean confidence of ${percent(calibration.confidence)}, expected calibration error ${percent(calibration.ece)}.`;

function chartCard(teachers, title, name, chart, caption, rows) {
  const card = element("figure", { class: "card" },
    element("div", { class: "heading" }, element("h3", { text: title }), saveButtons(name, { rows, node: () => card })),
    teachers.length > 1 ? seriesLegend(teachers) : null,
    chart, element("figcaption", { class: "quiet", text: caption }));
  return card;
}

function passages(sample, encoding) {
  const list = element("div", { class: "passages" }, ...sample.passages.map((passage) => passageOf(passage, encoding)));
  return element("section", { class: "card", "data-place": "passages", "aria-label": "The most surprising passages" },
    element("div", { class: "heading" }, element("h3", { text: "The most surprising passages" }),
      saveButtons("passages", { rows: () => sample.passages.map(passageRow), node: () => list })),
    legend("surprise"),
    list);
}

const predicted = (passage) => passage.view.tokens.filter((token) => token.index >= passage.first);

const passageRow = (passage) => ({
  document: passage.view.document_id, sequence: passage.view.sequence_id, first_token: passage.first,
  surprise_nats: passage.sum_nats, excess_nats: passage.excess_nats, text: predicted(passage).map((token) => token.text).join(""),
});

/** A passage: a link to its place, and its text, coloured by the mean surprise of the teachers. */
function passageOf(passage, encoding) {
  const { view, first } = passage, last = view.tokens.at(-1)?.index ?? first;
  const target = view.tokens.find((token) => token.index >= first && token.position !== null)?.index ?? first;
  const tokens = view.tokens.map((token, place) => passageToken(token, view.teachers.map((teacher) => [teacher.name, teacher.surprise_nats[place]]), first));
  return element("article", { class: "passage" },
    element("h4", {},
      element("a", { href: `#/${[encoding.name, view.sequence_id, target].map(encodeURIComponent).join("/")}` }, element("bdi", { text: view.document_id })),
      element("small", { text: `sequence ${count(view.sequence_id)}, tokens ${count(first)} to ${count(last)}, ${passage.sum_nats === null ? "infinite surprise" : `${decimal(passage.sum_nats, 0)} nats, ${decimal(passage.excess_nats, 0)} more than usual at these positions`}` })),
    element("p", { class: "passage-text", dir: "auto" }, ...tokens));
}

function passageToken(token, surprises, first) {
  const text = token.text === "" ? "·" : token.text.replaceAll("\n", "↵\n");
  if (token.position === null) return element("span", { class: "unasked", text });
  const finite = surprises.every(([, value]) => value !== null);
  const mean = finite ? surprises.reduce((sum, [, value]) => sum + value, 0) / surprises.length : null;
  const title = `${visible(token.text)}: ${surprises.map(([name, value]) => `${name} ${nats(value)} nats`).join(", ")}`;
  return element("span", { class: `heat heat-${band("surprise", mean)}${token.index < first ? " before" : ""}`, title, text });
}

const GROUP_COLUMNS = [
  ["positions", count], ["loss_nats", (value) => decimal(value, 3)], ["entropy_nats", (value) => decimal(value, 3)], ["perplexity", (value) => decimal(value, 1)],
  ["kept_mass", share], ["accuracy", share], ["confidence", share], ["ece", share],
];
const HEADS = { loss_nats: "loss, nats", entropy_nats: "entropy, nats", kept_mass: "kept mass", ece: "ECE" };

function share(value) {
  return value === null ? "–" : percent(value);
}

function groups(sample, numGroups) {
  const rows = sample.teachers.flatMap((teacher) => teacher.groups.map((group) => ({ teacher: teacher.name, ...group })));
  const several = sample.teachers.length > 1;
  const shown = Math.max(...sample.teachers.map((teacher) => teacher.groups.length));
  const head = [sample.groups_by, ...(several ? ["teacher"] : []), ...GROUP_COLUMNS.map(([key]) => HEADS[key] ?? key)];
  const body = rows.map((row) => [element("th", { scope: "row" }, element("bdi", { text: row.group })),
    ...(several ? [element("td", { text: row.teacher })] : []), ...GROUP_COLUMNS.map(([key, show]) => element("td", { text: show(row[key]) }))]);
  return tableCard(`Loss by ${sample.groups_by} of documents`, "groups", head, body, rows,
    shown < numGroups ? `The ${count(shown)} largest of ${count(numGroups)} groups in the sample.` : null);
}

function agreement(sample) {
  const names = sample.teachers.map((teacher) => teacher.name);
  const body = names.map((name, row) => [element("th", { scope: "row", text: name }), ...sample.agreement[row].map((value) => element("td", { text: share(value) }))]);
  const rows = names.map((name, row) => ({ teacher: name, ...Object.fromEntries(names.map((other, column) => [other, sample.agreement[row][column]])) }));
  return tableCard("Agreement of the teachers", "agreement", ["", ...names], body, rows, "Share of positions at which two teachers have the same top-1 token.");
}

/** A card with a table: `body` has a list of cells per row, `rows` what is saved. */
export function tableCard(title, name, head, body, rows, note) {
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...body.map((cells) => element("tr", {}, ...cells))));
  return element("section", { class: "card", "data-place": name, "aria-label": title },
    element("div", { class: "heading" }, element("h3", { text: title }), saveButtons(name, { rows: () => rows, node: () => table })),
    element("div", { class: "scroll" }, table),
    note ? element("p", { class: "quiet", text: note }) : null);
}
