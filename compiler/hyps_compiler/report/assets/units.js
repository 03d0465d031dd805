// Figures as the command line writes them: three digits, decimal units.

const fixed = (amount, digits) => amount.toFixed(digits);

function scaled(value, units) {
  let amount = value, index = 0;
  while (amount >= 999.5 && index < units.length - 1) {
    amount /= 1000;
    index += 1;
  }
  const digits = amount >= 99.95 || index === 0 ? 0 : amount >= 9.995 ? 1 : 2;
  return `${fixed(amount, digits)} ${units[index]}`.trimEnd();
}

const bytes = (value) => (value === null || value === undefined ? '?' : scaled(value, ['B', 'kB', 'MB', 'GB', 'TB']));
const count = (value) => (value === null || value === undefined ? '?' : scaled(value, ['', 'k', 'M', 'G', 'T']));

// As Python's `.3g`: no trailing zeros, and no exponent for what a page shows.
const three = (value) => String(Number(value.toPrecision(3)));

function seconds(value) {
  if (value === null || value === undefined) return '?';
  if (value >= 0.9995) return value < 99.95 ? `${three(value)} s` : `${fixed(value, 0)} s`;
  return value >= 0.0009995 ? `${three(value * 1e3)} ms` : `${three(value * 1e6)} µs`;
}

const rate = (value) => (value === null ? 'any' : three(value));
const plural = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;

// Names of one model begin alike: what is too long loses its middle.
function shortened(text, limit) {
  if (text.length <= limit) return text;
  if (limit < 4) return text.slice(0, Math.max(0, limit));
  const tail = Math.floor(((limit - 1) * 2) / 3);
  return `${text.slice(0, limit - 1 - tail)}…${text.slice(text.length - tail)}`;
}
