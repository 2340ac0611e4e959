/* Numbers, sizes and times as people read them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });
const AGO = [[86400, "d"], [3600, "h"], [60, "min"]];

export const NAMES = {
  full_logits: "full logits",
  compiled_full_logits: "compiled logits",
  chunked: "chunked",
  cce: "cut cross-entropy",
};

/** What `show` makes of a value; null where there is none. */
export const given = (value, show) => (value === null || value === undefined ? null : show(value));

/** A whole number with separators. */
export const count = (value) => NUMBER.format(value);

/** A loss. */
export const loss = (value) => value.toFixed(value < 10 ? 4 : 2);

/** A small number such as a learning rate. */
export const small = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(3));

/** How many times, for example `25.1×`. */
export const times = (value) => `${value.toFixed(value < 100 ? 1 : 0)}×`;

/** How something stands to a baseline that is `ratio` times it: `5.0× less`, and whether that is more. */
export function lessOrMore(ratio) {
  if (times(ratio) === times(1)) return { amount: "as much", than: "as", more: false };
  const more = ratio < 1;
  return { amount: more ? `${times(1 / ratio)} more` : `${times(ratio)} less`, than: "than", more };
}

/** A share in percent. */
export const percent = (share) => `${(share * 100).toFixed(1)} %`;

/** Bytes in the unit that keeps them short. */
export function size(bytes) {
  let unit = 0;
  let value = bytes;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit < 2 ? NUMBER.format(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Seconds as m:ss, or h:mm:ss; what would be 0:00 in words. */
export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [whole / 3600, (whole / 60) % 60, whole % 60].map(Math.floor);
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** How long ago a time in Unix seconds was. */
export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  const [unit, name] = AGO.find(([length]) => passed >= length) ?? [1, ""];
  return name ? `${Math.floor(passed / unit)} ${name} ago` : "just now";
}

/** A time in Unix seconds as date and time. */
export const date = (seconds) => DATE.format(seconds * 1000);

/** A time in Unix seconds as time of day. */
export const clock = (seconds) => CLOCK.format(seconds * 1000);

/** A name of the API in words. */
export const words = (name) => name.replaceAll("_", " ");
