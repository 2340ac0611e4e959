/* From values to places: linear and logarithmic scales, and round ticks. */

/** A function from [low, high] to [from, to]. */
export function linear(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** Round values that span [low, high] with about `wanted` steps of 1, 2 or 5 times a power of ten. */
export function ticks(low, high, wanted) {
  const rough = (high - low || Math.abs(high) || 1) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    values.push(Number((index * step).toPrecision(12)));
  }
  return values;
}

/** The decimals that tell `values`, evenly spaced, apart. */
export function decimals(values) {
  if (values.length < 2) return 2;
  return Math.max(0, -Math.floor(Math.log10(values[1] - values[0]) + 1e-9));
}
