// What all charts share: a frame that follows the width, axes, and a cursor for mouse, finger and keyboard.

const TEXT = 14;
const LEFT = 74;
const drawn = [];

// A chart calls `draw(svg, width)` whenever its width changes; the height is what draw returns.
function chart(label, draw, options) {
  const told = options || {};
  const svg = shape('svg', { class: 'chart', role: 'img', 'aria-label': label });
  const inner = el('div', { class: 'plot' }, svg);
  const readout = el('p', { class: 'readout', 'aria-live': 'polite' });
  const frame = el('div', { class: 'frame', tabindex: 0, role: 'group', 'aria-roledescription': 'chart', 'aria-label': `${label}. Arrow keys read the figures one by one.` }, inner);
  const state = { svg, frame, readout, at: -1, width: 0, cursor: null, zoom: 1 };
  state.redraw = () => {
    const width = Math.max(260, Math.floor(frame.clientWidth * state.zoom));
    svg.replaceChildren(patterns());
    state.cursor = null;
    const height = draw(svg, width, state);
    fill(svg, { width, height, viewBox: `0 0 ${width} ${height}` });
    state.width = frame.clientWidth;
    if (state.at >= 0) show(state, state.at);
  };
  drawn.push(state);
  new ResizeObserver(() => { if (frame.clientWidth !== state.width) state.redraw(); }).observe(frame);
  frame.addEventListener('keydown', (event) => step(state, event));
  inner.addEventListener('pointermove', (event) => point(state, event));
  inner.addEventListener('pointerdown', (event) => point(state, event));
  readout.textContent = told.hint || 'Point at the chart, or use the arrow keys, to read its figures.';
  return { node: el('figure', {}, frame, el('figcaption', {}, readout)), state };
}

function step(state, event) {
  if (!state.cursor) return;
  const last = state.cursor.count - 1;
  const moves = { ArrowRight: state.at + 1, ArrowDown: state.at + 1, ArrowLeft: state.at - 1, ArrowUp: state.at - 1, Home: 0, End: last };
  if (!(event.key in moves)) return;
  event.preventDefault();
  show(state, Math.max(0, Math.min(last, moves[event.key])));
}

function point(state, event) {
  if (!state.cursor) return;
  const box = state.svg.getBoundingClientRect();
  const index = state.cursor.find(event.clientX - box.left, event.clientY - box.top);
  if (index >= 0) show(state, index);
}

function show(state, index) {
  state.at = index;
  state.readout.textContent = state.cursor.text(index);
  const area = state.cursor.area(index);
  if (!state.line) state.line = shape('rect', { class: 'cursor', 'aria-hidden': 'true' });
  fill(state.line, { x: area[0], y: area[1], width: Math.max(2, area[2]), height: area[3] });
  state.svg.append(state.line);
}

// Hatching stands beside colour wherever areas are told apart.
function patterns() {
  const defs = shape('defs', {});
  for (const [name, angle, width] of [['hatch', 45, 3], ['cross', -45, 2]]) {
    const tile = shape('pattern', { id: name, width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: `rotate(${angle})` });
    tile.append(shape('rect', { class: 'stripe', width, height: 7 }));
    defs.append(tile);
  }
  return defs;
}

const label = (x, y, text, anchor, kind) => shape('text', { x, y, 'text-anchor': anchor || 'start', class: kind || 'tick', 'font-size': TEXT, text });

function niceStep(most, parts) {
  const rough = most / parts, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) || power * 10;
}

// A value axis: its scale, and its grid drawn.
function upAxis(svg, box, most, format, log, least) {
  const height = box.bottom - box.top;
  let scale, ticks = [];
  if (log) {
    const low = Math.floor(Math.log10(Math.max(least, most / 1e7))), high = Math.ceil(Math.log10(most) - 1e-9);
    const span = Math.max(1, high - low), every = Math.ceil(span / 5);
    scale = (value) => box.bottom - (Math.max(0, Math.log10(Math.max(value, 10 ** low)) - low) / span) * height;
    for (let power = low; power <= low + span; power += every) ticks.push(10 ** power);
  } else {
    const size = niceStep(most || 1, 4), top = Math.ceil((most || 1) / size - 1e-9) * size;
    scale = (value) => box.bottom - (value / top) * height;
    for (let value = 0; value <= top * 1.001; value += size) ticks.push(value);
  }
  for (const value of ticks) {
    const y = scale(value);
    svg.append(shape('line', { class: 'grid', x1: box.left, x2: box.right, y1: y, y2: y }), label(box.left - 8, y + 5, value || log ? format(value) : '0', 'end'));
  }
  return scale;
}

function timeAxis(svg, box, end, format) {
  const fits = Math.max(2, Math.floor((box.right - box.left) / 90));
  const size = niceStep(end || 1, fits);
  const scale = (value) => box.left + (value / (end || 1)) * (box.right - box.left);
  for (let value = 0; value <= end * 1.0001; value += size) {
    const x = scale(value);
    svg.append(shape('line', { class: 'grid', x1: x, x2: x, y1: box.top, y2: box.bottom }));
    const anchor = value === 0 ? 'start' : x > box.right - 30 ? 'end' : 'middle';
    svg.append(label(x, box.bottom + 20, value ? format(value) : '0', anchor));
  }
  return scale;
}

// Positions of equal things side by side.
function bands(box, number) {
  const width = (box.right - box.left) / Math.max(1, number);
  return {
    width,
    start: (index) => box.left + index * width,
    middle: (index) => box.left + (index + 0.5) * width,
    find: (x) => (x < box.left - 8 || x > box.right + 8 ? -1 : Math.max(0, Math.min(number - 1, Math.floor((x - box.left) / width)))),
  };
}

function bandAxis(svg, box, places, number, what) {
  const every = Math.max(1, Math.ceil((number * 44) / (box.right - box.left)));
  const size = every === 1 ? 1 : Math.ceil(every / 5) * 5;
  for (let index = size === 1 ? 0 : size - 1; index < number; index += size) svg.append(label(places.middle(index), box.bottom + 20, String(index + 1), 'middle'));
  svg.append(label((box.left + box.right) / 2, box.bottom + 42, what, 'middle', 'axis'));
}
