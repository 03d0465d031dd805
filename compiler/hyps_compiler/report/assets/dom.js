// Elements. Text only ever goes through textContent and setAttribute: names come from strangers.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'on') for (const [kind, run] of Object.entries(value)) node.addEventListener(kind, run);
    else if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children || []) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const section = (name) => document.getElementById(name);

function note(text) {
  return el('p', { class: 'note', text });
}

// A drop-down table with the figures of a chart, made when it is opened.
function details(label, headers, rows) {
  const box = el('details', {}, el('summary', { text: `${label} (${plural(rows.length, 'row')})` }));
  box.addEventListener('toggle', () => {
    if (box.open && box.children.length === 1) box.append(table(label, headers, rows));
  });
  return box;
}

function table(label, headers, rows) {
  const body = el('tbody', {});
  for (const row of rows) {
    const line = el('tr', {});
    row.forEach((cell, index) => {
      const isName = index === 0;
      const kind = typeof headers[index] === 'object' ? headers[index].kind : '';
      line.append(el(isName ? 'th' : 'td', { scope: isName ? 'row' : null, class: kind || null, text: String(cell) }));
    });
    body.append(line);
  }
  const heads = headers.map((head) => el('th', { scope: 'col', class: head.kind, text: head.text || head }));
  const inner = el('table', {}, el('caption', { text: label }), el('thead', {}, el('tr', {}, ...heads)), body);
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label }, inner);
}

const put = (host, ...nodes) => host.append(...nodes.filter((node) => node !== null));
const right = (text) => ({ text, kind: 'figure' });

function legend(entries) {
  const list = el('ul', { class: 'legend', 'aria-label': 'Legend' });
  for (const [kind, text, symbol] of entries) {
    list.append(el('li', {}, swatch(kind, symbol), el('span', { text })));
  }
  return list;
}

function swatch(kind, symbol) {
  const box = shape('svg', { width: 18, height: 18, viewBox: '0 0 18 18', 'aria-hidden': 'true' });
  if (symbol === 'line') box.append(shape('line', { class: kind, x1: 9, x2: 9, y1: 0, y2: 18 }));
  else if (symbol === 'level') box.append(shape('line', { class: kind, x1: 0, x2: 18, y1: 9, y2: 9 }));
  else if (symbol) box.append(mark(symbol, 9, 9, kind));
  else box.append(shape('rect', { class: kind, x: 2, y: 2, width: 14, height: 14, rx: 3 }));
  return box;
}

// Marks differ by their shape, not by colour alone.
function mark(kind, x, y, style) {
  const points = {
    diamond: [[0, -6], [6, 0], [0, 6], [-6, 0]],
    down: [[-7, -6], [7, -6], [0, 6]],
    star: Array.from({ length: 10 }, (_, i) => {
      const radius = i % 2 ? 3.2 : 8, angle = (Math.PI * i) / 5 - Math.PI / 2;
      return [radius * Math.cos(angle), radius * Math.sin(angle)];
    }),
  }[kind];
  if (!points) return shape('circle', { class: style, cx: x, cy: y, r: 5 });
  return shape('polygon', { class: style, points: points.map(([dx, dy]) => `${(x + dx).toFixed(1)},${(y + dy).toFixed(1)}`).join(' ') });
}

function choice(label, options, run) {
  const box = el('fieldset', { class: 'choice' }, el('legend', { text: label }));
  options.forEach(([value, text], index) => {
    const button = el('button', { type: 'button', 'aria-pressed': String(index === 0), text });
    button.addEventListener('click', () => {
      for (const other of box.querySelectorAll('button')) other.setAttribute('aria-pressed', String(other === button));
      run(value);
    });
    box.append(button);
  });
  return box;
}
