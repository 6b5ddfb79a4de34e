// Numbers as a person reads them.

const NOTHING = "–";
const missing = (value) => value === null || value === undefined;

export const decibel = (value) => (missing(value) ? NOTHING : `${value.toFixed(1)}\u00a0dB`);
export const fraction = (value) => (missing(value) ? NOTHING : value.toFixed(2));
export const percent = (share, digits = 0) => (missing(share) ? NOTHING : `${(100 * share).toFixed(digits)}\u00a0%`);
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export function quantity(value) {
  if (missing(value)) return NOTHING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export function duration(seconds) {
  if (missing(seconds)) return NOTHING;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const left = (seconds) => (missing(seconds) ? "" : seconds < 1 ? "any moment" : `${duration(Math.ceil(seconds))} left`);
export const whose = (clients) => (clients.length === 1 ? `client ${clients[0]}` : `clients ${clients.join(", ")} (mean)`);
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
