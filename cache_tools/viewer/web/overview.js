// The first page: what the cache holds, teacher by teacher, and what a sample of it shows.

import { alignmentLinks } from "./alignment.js";
import { count, decimal, element, percent } from "./page.js";
import { fillSample } from "./sample.js";
import { saveButtons } from "./save.js";

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

/** The page's content, and a function that fills in the statistics; its promise ends when all are shown. */
export function overview(summary) {
  const sections = summary.encodings.map((encoding) => ({ encoding, statistics: element("div", { class: "statistics" }) }));
  const content = [
    element("h1", { text: "What this cache holds" }),
    ...(sections.length ? sections.map(encodingSection) : [element("p", { text: "This cache is empty: no encoding has been committed yet." })]),
    element("p", { class: "quiet" },
      "Choose a sequence from the list, or search. To compare a student with its teacher, capture the student into this cache as ",
      "one more teacher of the same encoding; it then appears here beside the others."),
  ];
  return { content, fill: () => Promise.all(sections.map(({ encoding, statistics }) => fillSample(statistics, encoding))) };
}

function encodingSection({ encoding, statistics }) {
  const splits = Object.entries(encoding.splits);
  const total = (name) => splits.reduce((sum, [, totals]) => sum + totals[name], 0);
  return element("section", { class: "encoding", "aria-label": `Encoding ${encoding.name}` },
    element("h2", { "data-place": encoding.name }, `Encoding ${encoding.name}`, element("small", { text: `${encoding.objective}, vocabulary ${count(encoding.vocabulary_size)}` })),
    element("dl", { class: "tiles" },
      ...["documents", "sequences", "tokens", "positions"].map((name) =>
        element("div", {}, element("dt", { text: name }), element("dd", { text: count(total(name)) })))),
    ...encoding.teachers.map((teacher) => card(teacher, encoding)),
    ...[alignmentLinks(encoding)].filter((node) => node !== null),
    statistics);
}

const HEAD = ["split", "positions captured", "of the split", "perplexity", "cross-entropy, nats", "entropy, nats", "kept mass"];

function card(teacher, encoding) {
  const done = teacher.shards ? teacher.shards_done / teacher.shards : 0;
  const splits = Object.entries(teacher.statistics);
  const rows = splits.map(([split, means]) =>
    element("tr", {}, element("th", { scope: "row", text: split }),
      ...[count(teacher.positions_by_split[split]), count(encoding.splits[split].positions), decimal(means.perplexity, 1), decimal(means.cross_entropy_nats, 3), decimal(means.entropy_nats, 3),
        means.kept_mass === null || means.kept_mass === undefined ? "–" : percent(means.kept_mass)].map((text) => element("td", { text }))));
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...HEAD.map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...rows));
  const saved = () => splits.map(([split, means]) => ({ split, positions_captured: teacher.positions_by_split[split], positions_of_the_split: encoding.splits[split].positions, ...means }));
  return element("section", { class: "card", "aria-label": `Teacher ${teacher.name}` },
    element("div", { class: "heading" },
      element("h3", {}, teacher.name, element("small", {}, element("bdi", { text: teacher.model.name }))),
      rows.length ? saveButtons(`teacher-${teacher.name}`, { rows: saved, node: () => table }) : null),
    element("p", { class: "quiet", text: [
      ...(teacher.model.architecture ? [teacher.model.architecture] : []),
      ...(teacher.model.parameters ? [`${count(teacher.model.parameters)} parameters`] : []), `${teacher.target.kind}, k = ${teacher.target.k}`,
      `${count(teacher.shards_done)} of ${count(teacher.shards)} shards captured`, `${count(teacher.positions)} positions`,
      bytes(teacher.stored_bytes) + (teacher.bytes_per_position ? `, ${decimal(teacher.bytes_per_position, 1)} bytes per position` : ""),
    ].join(" · ") }),
    done < 1 ? element("progress", { value: done, max: 1, "aria-label": "Share of the shards that has been captured" }) : null,
    rows.length ? element("div", { class: "scroll" }, table) : null);
}

function bytes(value) {
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1000;
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${UNITS[unit]}`;
}
