// What every teacher predicts at one position: a bar for each of its likeliest tokens, one for the tokens that are
// kept and not listed, one for the left-out mass. All bars of a position have one scale, so that lengths
// can be compared between teachers.

import { count, decimal, element, nats, percent, visible } from "./page.js";
import { saveButtons } from "./save.js";

export const LISTED = 10;
export const ALL = 1_000_000;

/** The panel of a position; `pairs` holds the divergences of the teachers there. `more` asks for all kept tokens, or for few. */
export function distribution(view, token, pairs, { more, close }) {
  const rows = view.teachers.map((teacher) => rowsOf(teacher, view));
  const scale = Math.max(...rows.flat().map((row) => row.share), 1e-9);
  const longer = view.teachers.some((teacher) => teacher.kept > LISTED);
  const all = view.teachers.every((teacher) => teacher.alternatives.length === teacher.kept);
  const cards = element("div", { class: "teachers" }, ...view.teachers.map((teacher, i) => card(teacher, rows[i], scale)));
  return [
    element("header", {},
      element("h2", {}, "Gold token: ", element("bdi", { class: "gold-token", text: visible(view.gold) })),
      element("button", { type: "button", class: "close", "aria-label": "Close", onclick: close, text: "×" })),
    element("p", { class: "quiet" }, `Position ${count(view.position)}, token ${count(token.index)}, id ${view.gold_id}`),
    saveButtons(`sequence-${view.sequence_id}-position-${view.position}`, { rows: () => saved(view, rows), node: () => cards }),
    cards,
    element("p", { class: "quiet", text: [`The longest bar is ${percent(scale)}.`, ...apart(pairs, token)].join(" ") }),
    longer ? element("button", { type: "button", onclick: () => more(!all), text: all ? "List fewer tokens" : "List all kept tokens" }) : null,
  ].filter((node) => node !== null);
}

const saved = (view, rows) => view.teachers.flatMap((teacher, i) => rows[i].map((row) =>
  ({ teacher: teacher.name, token: row.label, id: row.id ?? null, probability: row.share, gold: Boolean(row.gold) })));

const apart = (pairs, token) =>
  pairs.map((pair) => `KL divergence between ${pair.a} and ${pair.b}, mean of both directions: ${nats(pair.kl_nats[token.index])} nats.`);

function rowsOf(teacher, view) {
  const rows = teacher.alternatives.map((item) => ({ label: visible(item.text), share: item.probability, gold: item.gold, id: item.id }));
  const listed = rows.reduce((sum, row) => sum + row.share, 0);
  if (!rows.some((row) => row.gold) && teacher.gold_probability !== null) {
    rows.push({ label: visible(view.gold), share: teacher.gold_probability, gold: true, id: view.gold_id });
  }
  const unlisted = teacher.kept - teacher.alternatives.length;
  if (unlisted > 0) {
    rows.push({ label: `${count(unlisted)} more kept`, share: Math.max(0, 1 - listed - teacher.left_out), rest: true });
  }
  rows.push({ label: "left out", share: teacher.left_out, leftOut: true });
  return rows;
}

function card(teacher, rows, scale) {
  const rank = teacher.gold_rank === null ? `not among the ${count(teacher.kept)} kept tokens` : `${count(teacher.gold_rank + 1)}`;
  return element("section", { class: "teacher", "aria-label": `Teacher ${teacher.name}` },
    element("h3", { text: teacher.name }),
    element("dl", { class: "facts" },
      ...fact("Gold rank", rank),
      ...fact("Surprise", teacher.gold_probability === null ? "–" : `${nats(teacher.surprise_nats)} nats`),
      ...fact("Entropy", teacher.entropy_nats === null ? "–" : `${decimal(teacher.entropy_nats, 2)} nats`),
      ...fact("Kept mass", percent(Math.min(1, 1 - teacher.left_out)))),
    element("ol", { class: "bars" }, ...rows.map((row) => bar(row, scale))));
}

function fact(name, value) {
  return [element("dt", { text: name }), element("dd", { text: value })];
}

function bar(row, scale) {
  const fill = element("span", { class: "fill" });
  fill.style.width = `${(row.share / scale) * 100}%`; // the content policy allows this, but no style attribute
  const kind = [row.gold && "gold", row.rest && "rest", row.leftOut && "left-out"].filter(Boolean).join(" ");
  return element("li", { class: kind || null, title: row.id === undefined ? null : `id ${row.id}` },
    element("span", { class: "name" },
      element("bdi", { class: "label", text: row.label }), row.gold ? element("span", { class: "mark", text: "gold" }) : null),
    element("span", { class: "bar", "aria-hidden": "true" }, fill),
    element("span", { class: "share", text: percent(row.share) }));
}
