// A text as the teacher's tokenizer and a student's own cut it, and the sequences that are covered least.
//
// A text is a row of segments, the shortest stretches at whose ends both tokenizers have a boundary: the teacher's
// tokens above, each a link to its predictions, the student's below, coloured by how the teacher's rows serve them.

import { options, setOptions } from "./address.js";
import { ask, count, element, percent, problem, visible } from "./page.js";
import { saveButtons } from "./save.js";

export const ALIGNMENTS = "alignments"; // the part of an address before an alignment's name

/** Classes of the student's positions: label, band of the heat's colours, meaning. */
const KINDS = {
  exact: ["exact", 0, "covers the same bytes as one of the teacher's tokens"],
  composed: ["composed", 1, "covers several whole tokens of the teacher's"],
  prefix: ["same prefix", 3, "both have read the same bytes, and the next tokens end at other bytes"],
  none: ["no row", 5, "no prediction of the teacher's belongs here"],
};

const api = (encoding, name, what) => [encoding, ALIGNMENTS, name, what].map(encodeURIComponent).join("/");
const link = (...path) => `#/${path.map(encodeURIComponent).join("/")}`;
const shareOf = ({ exact, composed, positions }) => (exact + composed) / Math.max(positions, 1);

/** Links to alignments of an encoding, at a sequence if one is given; null without alignments. */
export function alignmentLinks(encoding, number) {
  if (!encoding.alignments.length) return null;
  const place = number === undefined ? [] : [number];
  const links = encoding.alignments.flatMap((name, i) => [i ? ", " : "", element("a", { href: link(encoding.name, ALIGNMENTS, name, ...place), text: name })]);
  return element("p", { class: "quiet alignments" }, number === undefined ? "Alignments with students' tokenizers: " : "As a student's tokenizer cuts it: ", ...links);
}

/** The page of an alignment: its coverage, and its worst sequences; a promise of its content. */
export async function alignmentPage(encoding, name) {
  const content = element("div", { class: "alignment" });
  const wanted = Number(options().get("looked")) || 0;
  let answer = await ask(api(encoding, name, "worst"), { after: 0 }), page = joined(null, answer);
  const further = async () => {
    answer = await ask(api(encoding, name, "worst"), { after: page.next });
    page = joined(page, answer);
  };
  while (page.next !== null && page.looked < wanted) await further();
  const draw = () => content.replaceChildren(...worstContent(encoding, name, page, async () => {
    try {
      await further();
      setOptions({ looked: String(page.looked) });
      draw();
    } catch (error) {
      content.append(problem(error));
    }
  }));
  draw();
  return [content];
}

/** The answers of several requests as one. */
function joined(page, answer) {
  if (!page) return answer;
  const found = [...page.found, ...answer.found].sort((a, b) => shareOf(a.coverage) - shareOf(b.coverage) || a.sequence_id - b.sequence_id);
  const coverage = Object.fromEntries(Object.keys(page.coverage).map((key) => [key, page.coverage[key] + answer.coverage[key]]));
  return { ...answer, found, coverage };
}

function worstContent(encoding, name, page, more) {
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...["sequence", "exact or composed", "same prefix", "no row", "from its worst stretch"].map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...page.found.map((one) => worstRow(encoding, name, one))));
  const saved = () => page.found.map(({ coverage, ...one }) => ({ ...one, ...coverage }));
  return [
    element("header", { class: "title" }, element("h1", {}, "Alignment ", element("bdi", { text: name }))),
    element("p", { class: "quiet", text: `${count(page.coverage.positions)} positions of the student in ${count(page.looked)} of ${count(page.shards)} shards` }),
    legend(page.coverage),
    element("div", { class: "heading" }, element("h2", { text: "Sequences that are covered least" }),
      page.found.length ? saveButtons(`alignment-${name}`, { rows: saved, node: () => table }) : null),
    element("div", { class: "scroll" }, table),
    page.next === null ? null : element("button", { type: "button", text: "Continue searching", onclick: more }),
  ].filter((node) => node !== null);
}

function worstRow(encoding, name, { sequence_id, document_id, coverage, worst_byte, excerpt }) {
  const share = (number) => element("td", { text: percent(number / Math.max(coverage.positions, 1)) });
  return element("tr", {},
    element("th", { scope: "row" }, element("a", { href: link(encoding, ALIGNMENTS, name, sequence_id, worst_byte), title: document_id, text: count(sequence_id) })),
    share(coverage.exact + coverage.composed), share(coverage.prefix), share(coverage.none),
    element("td", { class: "worst-excerpt" }, element("bdi", { text: excerpt })));
}

/** A sequence as both tokenizers cut it; a promise of its content. */
export async function cutPage(encoding, name, number, byte) {
  const view = await ask(api(encoding, name, number));
  const text = drawn(encoding, view, byte ?? view.worst_byte);
  return [
    element("header", { class: "title" },
      element("h1", {}, `Sequence ${count(view.sequence_id)}`, element("small", {}, " as ", element("bdi", { text: name }), " cuts it")),
      element("span", { class: "steps" }, saveButtons(`alignment-${name}-${view.sequence_id}`, { rows: () => rows(view), node: () => text }))),
    element("p", { class: "quiet" }, "Document ", element("bdi", { class: "strong", text: view.document_id }), ` · ${view.split} · `,
      element("a", { href: link(encoding, ALIGNMENTS, name), text: "the whole alignment" }), " · ",
      element("a", { href: link(encoding, view.sequence_id), text: "the teachers' predictions" })),
    legend(view.coverage),
    element("p", { class: "quiet", text: "Above, the teacher's tokens; below, the student's, coloured by their class. A line stands where both have a boundary." }),
    text,
  ];
}

function drawn(encoding, view, byte) {
  const worst = view.segments.findLast((segment) => segment.first_byte <= byte);
  return element("div", { class: "text cuts", dir: "auto" }, ...view.segments.flatMap((segment) => [
    element("span", { class: segment === worst && byte !== null ? "segment worst" : "segment", "data-byte": segment.first_byte, "data-place": segment.first_byte },
      element("span", { class: "cut teacher-cut" }, ...segment.teacher.map((token) => teacherToken(encoding, view, token))),
      element("span", { class: "cut" }, ...segment.student.map(studentToken))),
    segment.teacher.at(-1)?.text.endsWith("↵") ? element("br") : null,
  ]).filter((node) => node !== null));
}

function teacherToken(encoding, view, token) {
  if (token.kind !== "predicted") return element("span", { class: "piece unasked", title: "The teacher read it as context only", text: visible(token.text) });
  return element("a", { class: "piece", href: link(encoding, view.sequence_id, token.index), title: "Show the teachers' predictions of this token", text: visible(token.text) });
}

function studentToken(token) {
  const [label, band, meaning] = KINDS[token.kind] ?? [];
  if (!label) return element("span", { class: "piece unasked", title: "The student reads it as context only", text: visible(token.text) });
  return element("span", { class: `piece heat heat-${band}`, title: `${label}: ${meaning}`, text: visible(token.text) });
}

function legend(coverage) {
  const items = Object.entries(KINDS).map(([kind, [label, band, meaning]]) =>
    element("li", { class: `heat heat-${band}`, title: meaning, text: `${label} ${percent(coverage[kind] / Math.max(coverage.positions, 1))}` }));
  return element("div", { class: "legend" }, element("ul", { "aria-label": "Classes of the student's positions" }, ...items, element("li", { class: "unasked", text: "context" })));
}

/** A sequence's cuts as rows to save: one per token of either side. */
function rows(view) {
  return view.segments.flatMap((segment) => ["teacher", "student"].flatMap((side) =>
    segment[side].map((token) => ({ first_byte: segment.first_byte, side, ...token }))));
}
