/* Bytes as bars on one axis, each with its figure and where that comes from. */

import { el } from "./dom.js";
import { size } from "./format.js";

/**
 * A titled group of bars.
 *
 * An entry has its `name`, `bytes`, the `text` of its figure, its `origin` as the API names it, a
 * `note` about that, and whether it is the job's `own`. The scale is `linear` or `log`.
 */
export function bars(title, entries, scale) {
  const axis = makeAxis(entries.map((entry) => entry.bytes), scale);
  const marks = axis.marks.map((bytes) => mark(bytes, axis.share(bytes)));
  return el(
    "div",
    { class: "group" },
    el("h4", {}, title),
    el("dl", { class: "bars" }, ...entries.map((entry) => row(entry, axis))),
    el("ul", { class: "axis", "aria-hidden": "true" }, ...marks),
  );
}

function row({ name, own, bytes, text, origin, note }, axis) {
  const bar = placed(el("span", { class: "bar", "data-origin": origin }), "width", axis.share(bytes));
  const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
  return el(
    "div",
    { class: own ? "own" : "" },
    el("dt", {}, name),
    el("dd", {}, track, el("b", {}, text), el("span", { class: "origin" }, note)),
  );
}

/** A mark under a track; those at its ends stay within it. */
function mark(bytes, share) {
  const place = share < 0.05 ? "start" : share > 0.95 ? "end" : "middle";
  return placed(el("li", { "data-place": place }, size(bytes)), "left", share);
}

/** Where bytes end on a track, as a share of its width, and the marks under it. */
function makeAxis(sizes, scale) {
  const most = Math.max(...sizes, 1);
  if (scale === "linear") return { share: (bytes) => bytes / most, marks: [0, most / 2, most] };
  // A log scale has no zero: it begins a power of ten under the smallest figure.
  const low = Math.floor(Math.log10(Math.max(1, Math.min(...sizes))) - 0.5);
  const high = Math.log10(most);
  const share = (bytes) => Math.max(0, Math.log10(Math.max(1, bytes)) - low) / (high - low || 1);
  const powers = [];
  for (let power = 10; 2 ** power <= most; power += 10) powers.push(2 ** power);
  const tens = powers.flatMap((unit) => [1, 10, 100].map((factor) => factor * unit));
  return { share, marks: tens.filter((bytes) => bytes >= 10 ** low && bytes <= most) };
}

/** Set a length by script: a style attribute is not allowed on this page. */
function placed(element, property, share) {
  element.style.setProperty(property, `${(share * 100).toFixed(2)}%`);
  return element;
}
