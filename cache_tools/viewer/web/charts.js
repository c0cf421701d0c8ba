// The charts of the first page, as SVG elements that take their colours from view.css (--series-0 to --series-5).

import { shape } from "./save.js";

const WIDTH = 460, HEIGHT = 250;
const PLOT = { left: 52, right: 448, top: 12, bottom: 206 };
const SERIES = 6;
const TICKS = 5;

export const seriesClass = (number) => `series-${number % SERIES}`;

/** Shares of positions over equal bins: `bars` has {edges, shares} per teacher. */
export function histogramChart(title, bars, label, horizontal) {
  const highest = Math.max(...bars.flatMap((bar) => bar.shares), 1e-9);
  const x = linear(bars[0].edges[0], bars[0].edges.at(-1), PLOT.left, PLOT.right), y = linear(0, highest, PLOT.bottom, PLOT.top);
  const outlines = bars.flatMap((bar, number) => {
    const steps = bar.shares.map((share, bin) => `L${x(bar.edges[bin])} ${y(share)}L${x(bar.edges[bin + 1])} ${y(share)}`).join("");
    const outline = `M${PLOT.left} ${PLOT.bottom}${steps}L${PLOT.right} ${PLOT.bottom}`;
    return [shape("path", { d: outline, class: `area ${seriesClass(number)}` }), shape("path", { d: outline, class: `curve ${seriesClass(number)}` })];
  });
  return frame(title, { x, y, xTicks: ticks(bars[0].edges[0], bars[0].edges.at(-1)), yTicks: ticks(0, highest), label, horizontal, vertical: round, side: "share of positions" }, outlines);
}

/** Accuracy over confidence: `curves` has {bins, positions} per teacher, or null; larger dots hold more positions. */
export function reliabilityChart(title, curves) {
  const x = linear(0, 1, PLOT.left, PLOT.right), y = linear(0, 1, PLOT.bottom, PLOT.top);
  const diagonal = shape("path", { d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`, class: "reference" });
  const drawn = curves.flatMap((curve, number) => {
    const bins = curve ? curve.bins.filter((bin) => bin.positions) : [];
    const dots = bins.map((bin) => shape("circle", {
      cx: x(bin.confidence), cy: y(bin.accuracy), r: 2 + 9 * Math.sqrt(bin.positions / curve.positions), class: `dots ${seriesClass(number)}`,
    }));
    return [line(bins.map((bin) => [x(bin.confidence), y(bin.accuracy)]), `curve ${seriesClass(number)}`), ...dots];
  });
  const whole = ticks(0, 1);
  return frame(title, { x, y, xTicks: whole, yTicks: whole, label: "confidence: probability of the top-1 token", horizontal: round, vertical: round, side: "accuracy" }, [diagonal, ...drawn]);
}

/** Loss (solid) and entropy (dotted) over the index of the token in its sequence, on a logarithmic axis. */
export function placesChart(title, curves) {
  const middle = (place) => (place.first + place.last) / 2;
  const all = curves.flat(), last = Math.max(...all.map(middle), 2);
  const highest = Math.max(...all.flatMap((place) => [place.loss_nats ?? 0, place.entropy_nats ?? 0]), 1e-9) * 1.05;
  const scale = linear(0, Math.log2(last), PLOT.left, PLOT.right), y = linear(0, highest, PLOT.bottom, PLOT.top);
  const x = (value) => scale(Math.log2(Math.max(value, 1)));
  const drawn = curves.flatMap((places, number) => [["loss_nats", "curve"], ["entropy_nats", "curve dotted"]].map(([key, kind]) =>
    line(places.filter((place) => place[key] !== null).map((place) => [x(middle(place)), y(place[key])]), `${kind} ${seriesClass(number)}`)));
  const powers = Array.from({ length: Math.floor(Math.log2(last)) + 1 }, (_, power) => 2 ** power);
  const xTicks = powers.filter((_, power) => power % Math.ceil(powers.length / 9) === 0);
  return frame(title, { x, y, xTicks, yTicks: ticks(0, highest), label: "index of the token in its sequence", horizontal: String, vertical: plain, side: "nats" }, drawn);
}

export const plain = (value) => String(Number(value.toPrecision(3)));
export const round = (value) => `${plain(value * 100)} %`;

function linear(low, high, from, to) {
  return (value) => Number((from + ((value - low) / (high - low || 1)) * (to - from)).toFixed(2));
}

/** Round numbers from low to high, about TICKS of them. */
function ticks(low, high) {
  const rough = (high - low) / TICKS, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.floor((high - low) / step + 1e-9) + 1 }, (_, number) => low + number * step);
}

const line = (points, kind) => shape("path", { d: points.map(([x, y], number) => `${number ? "L" : "M"}${x} ${y}`).join("") || "M0 0", class: kind });

function written(text, properties) {
  const made = shape("text", properties);
  made.textContent = text;
  return made;
}

function frame(title, { x, y, xTicks, yTicks, label, horizontal, vertical, side }, drawn) {
  const middle = (PLOT.top + PLOT.bottom) / 2;
  return shape("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
    ...yTicks.map((value) => shape("path", { d: `M${PLOT.left} ${y(value)}H${PLOT.right}`, class: "grid" })),
    ...yTicks.map((value) => written(vertical(value), { x: PLOT.left - 7, y: y(value) + 4, class: "tick", "text-anchor": "end" })),
    ...xTicks.map((value) => written(horizontal(value), { x: x(value), y: PLOT.bottom + 17, class: "tick", "text-anchor": "middle" })),
    ...drawn,
    written(label, { x: (PLOT.left + PLOT.right) / 2, y: HEIGHT - 8, class: "axis", "text-anchor": "middle" }),
    written(side, { x: -middle, y: 11, class: "axis", "text-anchor": "middle", transform: "rotate(-90)" }));
}
