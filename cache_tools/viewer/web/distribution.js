// What every teacher said at one position: a bar for each of its likeliest tokens, one for those that are kept
// and not listed, one for the mass that was left out. All bars of a position have one scale, so that lengths
// can be compared between teachers.

import { count, decimal, element, nats, percent, visible } from "./page.js";

const LISTED = 10;
const ALL = 1_000_000;

/** The panel of a position; `pairs` is how far the teachers are apart there. `more` asks for all kept tokens. */
export function distribution(view, token, pairs, { more, close }) {
  const rows = view.teachers.map((teacher) => rowsOf(teacher, view));
  const scale = Math.max(...rows.flat().map((row) => row.share), 1e-9);
  const longer = view.teachers.some((teacher) => teacher.kept > LISTED);
  const all = view.teachers.every((teacher) => teacher.alternatives.length === teacher.kept);
  return [
    element("header", {},
      element("h2", {}, "What followed: ", element("bdi", { class: "gold-token", text: visible(view.gold) })),
      element("button", { type: "button", class: "close", "aria-label": "Close", onclick: close, text: "×" })),
    element("p", { class: "quiet" }, `Position ${count(view.position)}, token ${count(token.index)}, id ${view.gold_id}`),
    element("div", { class: "teachers" }, ...view.teachers.map((teacher, i) => card(teacher, rows[i], scale))),
    element("p", { class: "quiet", text: [`A full bar is ${percent(scale)}.`, ...apart(pairs, token)].join(" ") }),
    longer ? element("button", { type: "button", onclick: () => more(all ? LISTED : ALL), text: all ? "Show fewer" : "Show all that were kept" }) : null,
  ].filter((node) => node !== null);
}

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
  const rank = teacher.gold_rank === null ? `not among the ${count(teacher.kept)} kept` : `${count(teacher.gold_rank + 1)}`;
  return element("section", { class: "teacher", "aria-label": `Teacher ${teacher.name}` },
    element("h3", { text: teacher.name }),
    element("dl", { class: "facts" },
      ...fact("Gold rank", rank),
      ...fact("Surprise", `${nats(teacher.surprise_nats)} nats`),
      ...fact("Entropy", `${decimal(teacher.entropy_nats, 2)} nats`),
      ...fact("Kept mass", percent(Math.min(1, 1 - teacher.left_out)))),
    element("ol", { class: "bars" }, ...rows.map((row) => bar(row, scale))));
}

function fact(name, value) {
  return [element("dt", { text: name }), element("dd", { text: value })];
}

function bar(row, scale) {
  const fill = element("span", { class: "fill" });
  fill.style.width = `${(row.share / scale) * 100}%`; // set by script, which the policy lets pass; a style attribute is not
  const kind = [row.gold && "gold", row.rest && "rest", row.leftOut && "left-out"].filter(Boolean).join(" ");
  return element("li", { class: kind || null, title: row.id === undefined ? null : `id ${row.id}` },
    element("span", { class: "name" },
      element("bdi", { class: "label", text: row.label }), row.gold ? element("span", { class: "mark", text: "gold" }) : null),
    element("span", { class: "bar", "aria-hidden": "true" }, fill),
    element("span", { class: "share", text: percent(row.share) }));
}
