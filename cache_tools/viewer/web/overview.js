// The first page: what the cache holds, teacher by teacher.

import { count, decimal, element, percent } from "./page.js";

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

export function overview(summary) {
  const encodings = summary.encodings.map(encoding);
  return [
    element("h1", { text: "What this cache holds" }),
    ...(encodings.length ? encodings : [element("p", { text: "This cache is empty: no encoding has been committed yet." })]),
    element("p", { class: "quiet" },
      "Choose a sequence from the list, or search. A student is compared with its teacher in the same way: capture its checkpoint into this ",
      "cache as one more teacher of the same encoding, and it stands beside the others."),
  ];
}

function encoding(one) {
  const splits = Object.entries(one.splits);
  const total = (name) => splits.reduce((sum, [, totals]) => sum + totals[name], 0);
  return element("section", { class: "encoding", "aria-label": `Encoding ${one.name}` },
    element("h2", {}, `Encoding ${one.name}`, element("small", { text: `${one.objective}, vocabulary ${count(one.vocabulary_size)}` })),
    element("dl", { class: "tiles" },
      ...["documents", "sequences", "tokens", "positions"].map((name) =>
        element("div", {}, element("dt", { text: name }), element("dd", { text: count(total(name)) })))),
    ...one.teachers.map((teacher) => card(teacher, one)));
}

function card(teacher, one) {
  const done = teacher.shards ? teacher.shards_done / teacher.shards : 0;
  const rows = Object.entries(teacher.statistics).map(([split, means]) =>
    element("tr", {}, element("th", { scope: "row", text: split }),
      ...[count(one.splits[split].positions), decimal(means.perplexity, 1), decimal(means.cross_entropy_nats, 3), decimal(means.entropy_nats, 3),
        means.kept_mass === null ? "–" : percent(means.kept_mass)].map((text) => element("td", { text }))));
  const head = ["split", "positions", "perplexity", "cross-entropy, nats", "entropy, nats", "kept mass"];
  return element("section", { class: "card", "aria-label": `Teacher ${teacher.name}` },
    element("h3", {}, teacher.name, element("small", {}, element("bdi", { text: teacher.model.name }))),
    element("p", { class: "quiet", text: [
      teacher.model.architecture, `${count(teacher.model.parameters)} parameters`, `${teacher.target.kind}, k = ${teacher.target.k}`,
      `${count(teacher.shards_done)} of ${count(teacher.shards)} shards`, `${count(teacher.positions)} positions`,
      bytes(teacher.stored_bytes) + (teacher.bytes_per_position ? `, ${teacher.bytes_per_position.toFixed(1)} bytes per position` : ""),
    ].join(" · ") }),
    done < 1 ? element("progress", { value: done, max: 1, "aria-label": "Shards captured" }) : null,
    rows.length ? element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", text })))),
      element("tbody", {}, ...rows))) : null);
}

function bytes(value) {
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1000;
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${UNITS[unit]}`;
}
