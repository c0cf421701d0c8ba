// Tables as CSV, and whatever the page draws as SVG or PNG: charts, heat maps, bars.
//
// A picture is made from the boxes and lines of text that the browser laid out, so it looks like the screen,
// colour scheme included. It holds no markup of a corpus: text becomes text nodes of the SVG.

import { element } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const PADDING = 12;
const PIXEL_RATIO = 2;
const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "font-weight", "text-anchor"];

/** Buttons that save a table, a picture or both; `rows` and `node` are functions, asked on a click. */
export function saveButtons(name, { rows, node }) {
  const button = (text, what, act) =>
    element("button", { type: "button", title: `Save ${what} as ${text}`, "aria-label": `Save ${what} as ${text}: ${name}`, text, onclick: act });
  return element("span", { class: "save" }, element("span", { class: "quiet", "aria-hidden": "true", text: "Save" }),
    rows ? button("CSV", "the numbers", () => download(`${name}.csv`, new Blob(["\ufeff", csv(rows())], { type: "text/csv" }))) : null,
    node ? button("SVG", "the picture", () => download(`${name}.svg`, new Blob([picture(node()).text], { type: "image/svg+xml" }))) : null,
    node ? button("PNG", "the picture", () => savePng(name, picture(node()))) : null);
}

/** Objects with equal keys as CSV (RFC 4180), the keys first. */
export function csv(rows) {
  const names = Object.keys(rows[0] ?? {});
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((cells) => cells.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** A cell; text that a spreadsheet would take for a formula begins with an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(name, content) {
  const link = element("a", { href: URL.createObjectURL(content), download: name.replace(/[^\w.-]+/g, "-") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function savePng(name, { text, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas", { width: Math.ceil(width * PIXEL_RATIO), height: Math.ceil(height * PIXEL_RATIO) });
  const context = canvas.getContext("2d");
  context.scale(PIXEL_RATIO, PIXEL_RATIO);
  context.drawImage(image, 0, 0, width, height);
  canvas.toBlob((content) => download(`${name}.png`, content), "image/png");
}

/** A part of the page as an SVG: {text, width, height}. */
export function picture(root) {
  const frame = root.getBoundingClientRect();
  const width = Math.max(frame.width, root.scrollWidth) + 2 * PADDING, height = Math.max(frame.height, root.scrollHeight) + 2 * PADDING;
  const page = getComputedStyle(document.body).backgroundColor;
  const drawing = shape("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` },
    shape("rect", { width, height, fill: page }));
  drawInto(drawing, root, { x: PADDING - frame.left + root.scrollLeft, y: PADDING - frame.top + root.scrollTop });
  return { text: new XMLSerializer().serializeToString(drawing), width, height };
}

export function shape(tag, properties = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name !== "xmlns" && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawInto(drawing, node, offset) {
  if (node.nodeType === Node.TEXT_NODE) return drawing.append(...textLines(node, offset));
  if (node.nodeType !== Node.ELEMENT_NODE || node.matches(".save, button") || !node.checkVisibility()) return;
  if (node.localName === "svg") return drawing.append(chartCopy(node, offset));
  drawing.append(...boxes(node, offset));
  for (const child of node.childNodes) drawInto(drawing, child, offset);
}

function boxes(node, offset) {
  const style = getComputedStyle(node), border = Number.parseFloat(style.borderLeftWidth) > 0;
  const filled = !/^rgba\(.*, 0\)$|^transparent$/.test(style.backgroundColor);
  if (!filled && !border) return [];
  const hatched = style.backgroundImage.startsWith("repeating-linear-gradient");
  const rects = [...node.getClientRects()].map((box) => shape("rect", {
    x: box.left + offset.x, y: box.top + offset.y, width: box.width, height: box.height,
    rx: Number.parseFloat(style.borderTopLeftRadius) || null,
    fill: hatched ? "url(#hatch)" : filled ? style.backgroundColor : "none", stroke: border ? style.borderLeftColor : null,
  }));
  return hatched ? [hatching(style.borderLeftColor), ...rects] : rects;
}

/** The stripes of the style sheet's bars of left-out mass, all of which have one colour: 3 of 6 pixels, rising to the right. */
function hatching(colour) {
  return shape("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    shape("rect", { width: 3, height: 6, fill: colour }));
}

/** Each line of a text node as the browser broke it. */
function textLines(node, offset) {
  const style = getComputedStyle(node.parentElement), range = document.createRange(), lines = [];
  range.selectNodeContents(node);
  const whole = [...range.getClientRects()];
  if (!whole.length || !node.data.trim()) return [];
  let start = 0;
  for (const letter of whole.length > 1 ? node.data : [node.data]) {
    range.setStart(node, start);
    start += letter.length;
    range.setEnd(node, start);
    const box = range.getClientRects()[0], line = lines.at(-1);
    if (!box || letter === "\n") continue;
    if (line && Math.abs(line.top - box.top) < box.height / 2) {
      line.text += letter;
      line.right = Math.max(line.right, box.right);
    } else lines.push({ text: letter, left: box.left, right: box.right, top: box.top, bottom: box.bottom });
  }
  return lines.map((line) => {
    const made = shape("text", {
      x: line.left + offset.x, y: (line.top + line.bottom) / 2 + offset.y, fill: style.color, "dominant-baseline": "central",
      "font-size": style.fontSize, "font-family": style.fontFamily, "font-weight": style.fontWeight,
      textLength: line.text.trim() ? line.right - line.left : null, lengthAdjust: "spacingAndGlyphs",
    });
    made.setAttributeNS("http://www.w3.org/XML/1998/namespace", "xml:space", "preserve");
    made.textContent = line.text.replace(/[\0-\x08\x0b-\x1f]/g, ""); // XML has no such characters
    return made;
  });
}

/** A chart with the colours and fonts that the style sheet gives it, at its place. */
function chartCopy(chart, offset) {
  const copy = chart.cloneNode(true), box = chart.getBoundingClientRect();
  const originals = [chart, ...chart.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
  for (const [index, original] of originals.entries()) {
    const style = getComputedStyle(original);
    copies[index].removeAttribute("class");
    for (const name of DRAWN) copies[index].setAttribute(name, style.getPropertyValue(name));
  }
  for (const [name, value] of Object.entries({ x: box.left + offset.x, y: box.top + offset.y, width: box.width, height: box.height })) {
    copy.setAttribute(name, value);
  }
  return copy;
}
