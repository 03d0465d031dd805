// The partitions: a picture that is dragged, zoomed, searched and walked through.

const NODE_TEXT = 7.6; // width of a character at 14 px, a little more than most are

function partitionGraph(data, host) {
  const view = { scale: 1, x: 0, y: 0, width: 0, height: 0, mode: 'device', chosen: -1, hits: [], hit: -1 };
  const edges = shape('path', { class: 'edge' });
  const near = shape('path', { class: 'edge near' });
  const frames = shape('g', {}), nodes = shape('g', {});
  const svg = shape('svg', { class: 'graph', 'aria-hidden': 'false' }, frames, edges, near, nodes);
  const help = 'Arrow keys move the picture, plus and minus zoom, 0 shows all, Tab goes to the partitions and there arrow keys go from one to the next.';
  const box = el('div', { class: 'canvas', tabindex: 0, role: 'group', 'aria-label': `Partition graph. ${help}` }, svg);
  const panel = el('aside', { class: 'panel', 'aria-label': 'Details of the partition', 'aria-live': 'polite' });
  const index = data.nodes.map((node) => searchText(data, node));
  const most = { peak: Math.max(1, ...data.nodes.map((n) => n.peak_bytes || 0)), time: Math.max(1e-9, ...data.nodes.map((n) => n.seconds || 0)) };
  const made = new Map();
  const lines = linesOf(data);
  let pending = false;

  function later() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; render(); });
  }

  function size() {
    view.width = box.clientWidth;
    view.height = box.clientHeight;
    fill(svg, { width: view.width, height: view.height });
  }

  const fitting = () => Math.min(1.2, (view.width - 24 - 64) / Math.max(1, data.width), (view.height - 48) / Math.max(1, data.height));

  function fit() {
    view.scale = fitting();
    view.x = 24 + (view.width - 24 - 64 - data.width * view.scale) / 2;
    view.y = (view.height - data.height * view.scale) / 2;
    later();
  }

  function zoom(factor, x, y) {
    const scale = Math.max(Math.min(0.05, fitting()), Math.min(2.5, view.scale * factor));
    const real = scale / view.scale;
    view.x = x - (x - view.x) * real;
    view.y = y - (y - view.y) * real;
    view.scale = scale;
    later();
  }

  function centre(place, least) {
    const node = data.nodes[place];
    view.scale = Math.max(view.scale, least);
    view.x = view.width / 2 - (node.x + data.node_width / 2) * view.scale;
    view.y = view.height / 2 - (node.y + data.node_height / 2) * view.scale;
  }

  function seen(x, y, width, height) {
    const left = x * view.scale + view.x, top = y * view.scale + view.y;
    return left < view.width + 40 && top < view.height + 40 && left + width * view.scale > -40 && top + height * view.scale > -40;
  }

  function render() {
    const w = data.node_width * view.scale, h = data.node_height * view.scale;
    const level = w >= 148 && h >= 44 ? 2 : w >= 44 && h >= 18 ? 1 : 0;
    const wanted = new Set();
    data.nodes.forEach((node, place) => {
      if (!seen(node.x, node.y, data.node_width, data.node_height) && place !== view.chosen) return;
      wanted.add(place);
      let drawn = made.get(place);
      if (!drawn) {
        drawn = newNode(place);
        made.set(place, drawn);
        nodes.append(drawn.group);
      }
      paint(drawn, node, place, w, h, level);
    });
    for (const [place, drawn] of made) {
      if (!wanted.has(place)) {
        drawn.group.remove();
        made.delete(place);
      }
    }
    paintEdges();
    paintFrames();
  }

  function newNode(place) {
    const node = data.nodes[place];
    const group = shape('g', { class: `node ${node.kind}`, role: 'button', 'data-place': place, 'aria-label': spoken(data, node) });
    const parts = { group, card: shape('rect', { class: 'card' }), side: shape('rect', {}), meter: shape('rect', { class: 'meter' }), lines: [0, 1, 2].map(() => shape('text', { 'font-size': TEXT })) };
    group.append(parts.card, parts.side, parts.meter, ...parts.lines);
    group.addEventListener('focus', () => choose(place, false));
    return parts;
  }

  function paint(drawn, node, place, w, h, level) {
    const isEnd = node.kind === 'request' || node.kind === 'answer';
    const state = `node ${node.kind}${place === view.chosen ? ' chosen' : ''}${view.hits.includes(place) ? ' hit' : ''}`;
    fill(drawn.group, { class: state, tabindex: place === Math.max(view.chosen, 0) ? 0 : -1, 'aria-pressed': String(place === view.chosen), transform: `translate(${(node.x * view.scale + view.x).toFixed(1)} ${(node.y * view.scale + view.y).toFixed(1)})` });
    const round = isEnd ? h / 2 : Math.min(8, h / 5);
    fill(drawn.card, { width: w.toFixed(1), height: h.toFixed(1), rx: round.toFixed(1) });
    const colour = paintClass(node);
    const bar = level ? Math.min(8, Math.max(3, 7 * view.scale)) : w;
    fill(drawn.side, { class: isEnd ? 'none' : `side ${colour}`, width: bar.toFixed(1), height: h.toFixed(1), rx: Math.min(level ? 3 : 8, h / 5).toFixed(1) });
    const share = view.mode === 'memory' ? (node.peak_bytes || 0) / most.peak : view.mode === 'time' ? (node.seconds || 0) / most.time : 0;
    const hasMeter = level > 0 && share > 0 && !isEnd;
    fill(drawn.meter, { class: `meter ${colour}`, x: 12, y: h - 7, width: hasMeter ? ((w - 20) * share).toFixed(1) : 0, height: hasMeter ? 4 : 0 });
    const lines = level ? nodeLines(node, w, h, level) : [];
    drawn.lines.forEach((text, i) => {
      text.textContent = lines[i] || '';
      const top = h / 2 + (i - (lines.length - 1) / 2) * 18 + 5 - (hasMeter && lines.length > 1 ? 3 : 0);
      fill(text, { x: isEnd ? w / 2 : bar + 7, y: top.toFixed(1), 'text-anchor': isEnd ? 'middle' : 'start', class: i ? 'soft' : 'strong' });
    });
  }

  function nodeLines(node, w, h, level) {
    const room = Math.floor((w - 20) / NODE_TEXT);
    if (node.kind === 'request' || node.kind === 'answer') return [node.id.slice(0, room)];
    const head = node.shard ? `${node.id} · ${node.shard.split(' of ').slice(0, 2).join('/')}` : node.id;
    if (level === 1) return [shortened(node.id, room)];
    const names = node.layers.length > 1 ? `${node.layers[0]} … ${node.layers[node.layers.length - 1]}` : node.layers[0] || '';
    const figures = view.mode === 'time' ? `${seconds(node.seconds)}` : `${bytes(view.mode === 'memory' ? node.peak_bytes : node.weight_bytes)}${node.seconds === null ? '' : ` · ${seconds(node.seconds)}`}`;
    const lines = [shortened(head, room), shortened(names, room)];
    return h >= 60 ? [...lines, shortened(figures, room)] : lines;
  }

  function paintClass(node) {
    if (view.mode === 'device') return `s${Math.max(0, node.device) % 8}`;
    const share = view.mode === 'memory' ? (node.peak_bytes || 0) / most.peak : (node.seconds || 0) / most.time;
    return `h${Math.min(6, Math.floor(share * 7))}`;
  }

  function route(line) {
    const s = view.scale, at = (x, y) => `${(x * s + view.x).toFixed(1)} ${(y * s + view.y).toFixed(1)}`;
    const { a, b, side } = line;
    const x1 = a.x + a.width / 2, y1 = a.y + a.height, x2 = b.x + b.width / 2, y2 = b.y, gap = y2 - y1;
    if (side === null) return `M${at(x1, y1)}C${at(x1, y1 + gap / 2)} ${at(x2, y2 - gap / 2)} ${at(x2, y2)}`;
    const turn = 26; // out to where nothing stands, along it, and back in
    return `M${at(x1, y1)}C${at(x1, y1 + turn)} ${at(side, y1 + turn - 10)} ${at(side, y1 + turn + (gap > 0 ? 14 : -14))}L${at(side, y2 - turn - (gap > 0 ? 14 : -14))}C${at(side, y2 - turn + 10)} ${at(x2, y2 - turn)} ${at(x2, y2)}`;
  }

  function paintEdges() {
    const plain = [], chosen = [];
    for (const line of lines) {
      if (!seen(line.x, line.y, line.width, line.height)) continue;
      (line.ends.includes(view.chosen) ? chosen : plain).push(route(line));
    }
    edges.setAttribute('d', plain.join(''));
    near.setAttribute('d', chosen.join(''));
  }

  function paintFrames() {
    frames.replaceChildren();
    for (const group of data.groups) {
      if (!seen(group.x, group.y, group.width, group.height)) continue;
      const x = group.x * view.scale + view.x, y = group.y * view.scale + view.y;
      const wide = group.width * view.scale;
      frames.append(shape('rect', { class: 'group', x: x.toFixed(1), y: y.toFixed(1), width: wide.toFixed(1), height: (group.height * view.scale).toFixed(1), rx: 10 * view.scale }));
      const room = Math.floor((wide - 8) / NODE_TEXT);
      if (view.scale >= 0.62 && room > 8) frames.append(label(x + 4, y - 5, shortened(group.label, room), 'start', 'soft'));
    }
  }

  function choose(place, isCentred) {
    view.chosen = place;
    if (isCentred) centre(place, 0.75);
    tell(place);
    later();
  }

  function go(place) {
    const at = Math.max(0, Math.min(data.nodes.length - 1, place));
    choose(at, !inside(at));
    render();
    made.get(at).group.focus({ preventScroll: true });
  }

  function inside(place) {
    const node = data.nodes[place];
    const left = node.x * view.scale + view.x, top = node.y * view.scale + view.y;
    return left >= 0 && top >= 0 && left + data.node_width * view.scale <= view.width && top + data.node_height * view.scale <= view.height;
  }

  function tell(place) {
    const node = data.nodes[place];
    panel.replaceChildren(...panelContent(data, node, place, (other) => { choose(other, true); }));
  }

  // Search.

  const field = el('input', { type: 'search', id: 'find', placeholder: 'layer, partition or tensor', autocomplete: 'off', spellcheck: 'false' });
  const found = el('p', { class: 'found', role: 'status' });

  function search() {
    const words = field.value.trim().toLowerCase();
    view.hits = words ? index.flatMap((text, place) => (text.includes(words) ? [place] : [])) : [];
    view.hit = -1;
    if (view.hits.length) next(1);
    else found.textContent = words ? 'nothing is called so' : '';
    later();
  }

  function next(by) {
    if (!view.hits.length) return;
    view.hit = (view.hit + by + view.hits.length) % view.hits.length;
    const place = view.hits[view.hit];
    choose(place, true);
    found.textContent = `${view.hit + 1} of ${plural(view.hits.length, 'hit')}: ${data.nodes[place].id}`;
  }

  field.addEventListener('input', search);
  field.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') { event.preventDefault(); next(event.shiftKey ? -1 : 1); }
    if (event.key === 'Escape') { field.value = ''; search(); }
  });

  // Mouse and fingers.

  const touches = new Map();
  let moved = 0, from = null;

  box.addEventListener('wheel', (event) => {
    event.preventDefault();
    const at = box.getBoundingClientRect();
    zoom(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 240), event.clientX - at.left, event.clientY - at.top);
  }, { passive: false });
  box.addEventListener('pointerdown', (event) => {
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    if (touches.size === 1) { moved = 0; from = event.target.closest('.node'); }
  });
  box.addEventListener('mousedown', (event) => { // a drag that begins on a partition does not choose it
    if (event.target.closest('.node')) event.preventDefault();
  });
  box.addEventListener('pointermove', (event) => {
    const last = touches.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last[0], dy = event.clientY - last[1];
    if (touches.size === 1) {
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved > 5 && !box.hasPointerCapture(event.pointerId)) box.setPointerCapture(event.pointerId);
      view.x += dx;
      view.y += dy;
      touches.set(event.pointerId, [event.clientX, event.clientY]);
      later();
      return;
    }
    const [other] = [...touches.entries()].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(event.clientX - other[0], event.clientY - other[1]);
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    moved += 10;
    const at = box.getBoundingClientRect();
    if (before > 0) zoom(after / before, (event.clientX + other[0]) / 2 - at.left, (event.clientY + other[1]) / 2 - at.top);
    view.x += dx / 2;
    view.y += dy / 2;
  });
  const lift = (event) => {
    const isTap = event.type === 'pointerup' && touches.size === 1 && moved <= 5;
    touches.delete(event.pointerId);
    if (isTap && from) go(Number(from.dataset.place));
  };
  for (const kind of ['pointerup', 'pointercancel']) box.addEventListener(kind, lift);

  // Keyboard.

  box.addEventListener('keydown', (event) => {
    const node = event.target.closest('.node');
    const middle = [view.width / 2, view.height / 2];
    const anywhere = { '+': () => zoom(1.25, ...middle), '=': () => zoom(1.25, ...middle), '-': () => zoom(0.8, ...middle), 0: fit };
    const onNode = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 };
    const onCanvas = { ArrowRight: [-60, 0], ArrowLeft: [60, 0], ArrowDown: [0, -60], ArrowUp: [0, 60] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in anywhere) anywhere[event.key]();
    else if (node && event.key in onNode) go(Number(node.dataset.place) + onNode[event.key]);
    else if (node && (event.key === 'Enter' || event.key === ' ')) choose(Number(node.dataset.place), true);
    else if (node && event.key === 'Escape') box.focus();
    else if (!node && event.key in onCanvas) {
      view.x += onCanvas[event.key][0];
      view.y += onCanvas[event.key][1];
      later();
    } else return;
    event.preventDefault();
  });

  // Put together.

  const zoomButton = (text, label_, run) => el('button', { type: 'button', 'aria-label': label_, title: label_, text, on: { click: run } });
  const half = () => [view.width / 2, view.height / 2];
  const buttons = el('div', { class: 'zoom', role: 'group', 'aria-label': 'Zoom' },
    zoomButton('+', 'Zoom in', () => zoom(1.4, ...half())), zoomButton('−', 'Zoom out', () => zoom(1 / 1.4, ...half())), zoomButton('⤢', 'Show all', fit));
  const modes = data.devices.length > 1 ? [['device', 'Device'], ['memory', 'Memory']] : [['memory', 'Memory'], ['device', 'Device']];
  view.mode = modes[0][0];
  if (data.nodes.some((node) => node.seconds !== null && node.seconds !== undefined)) modes.push(['time', 'Time']);
  const keys = el('div', { class: 'keys' });
  function tellKeys() {
    const words = view.mode === 'memory' ? `up to ${bytes(most.peak)} resident` : `up to ${seconds(most.time)}`;
    const entries = view.mode === 'device' ? data.devices.map((name, i) => [`s${i % 8}`, name]) : [['h0', 'least'], ['h3', 'half'], ['h6', words]];
    keys.replaceChildren(legend(entries));
  }
  const colours = choice('Colour by', modes, (mode) => { view.mode = mode; tellKeys(); later(); });
  const finder = el('div', { class: 'finder' }, el('label', { for: 'find', text: 'Find' }), field,
    el('button', { type: 'button', 'aria-label': 'Next hit', title: 'Next hit', text: '↓', on: { click: () => next(1) } }), found);
  host.append(el('div', { class: 'tools' }, finder, colours),
    el('div', { class: 'split' }, el('div', { class: 'stage' }, box, buttons), panel), keys);
  tellKeys();
  size();
  fit();
  const heavy = data.nodes.reduce((best, node, place) => ((node.peak_bytes || 0) > (data.nodes[best].peak_bytes || 0) ? place : best), 1);
  choose(Math.min(heavy, data.nodes.length - 1), false);
  render();
  new ResizeObserver(() => {
    if (!box.clientWidth || (box.clientWidth === view.width && box.clientHeight === view.height)) return;
    size();
    fit();
  }).observe(box);
}

// One line for each edge; one for all where a partition feeds, or is fed by, every part of a group.
function linesOf(data) {
  const box = (place) => ({ x: data.nodes[place].x, y: data.nodes[place].y, width: data.node_width, height: data.node_height });
  const groupOf = new Map();
  data.groups.forEach((group, i) => group.members.forEach((place) => groupOf.set(place, i)));
  const bundles = new Map();
  const add = (key, edge) => bundles.set(key, [...(bundles.get(key) || []), edge]);
  for (const edge of data.edges) {
    const from = groupOf.get(edge.source), to = groupOf.get(edge.target);
    if (to !== undefined && from !== to) add(`in ${edge.source} ${to}`, edge);
    if (from !== undefined && from !== to) add(`out ${from} ${edge.target}`, edge);
  }
  const bundled = new Set(), lines = [];
  for (const [key, edges] of bundles) {
    const [way, first, last] = key.split(' '), group = data.groups[way === 'in' ? last : first];
    if (edges.length < 2 || edges.length < group.members.length) continue;
    edges.forEach((edge) => bundled.add(edge));
    lines.push(way === 'in' ? lineOf(data, box(first), group, [Number(first), ...group.members]) : lineOf(data, group, box(last), [...group.members, Number(last)]));
  }
  for (const edge of data.edges) if (!bundled.has(edge)) lines.push(lineOf(data, box(edge.source), box(edge.target), [edge.source, edge.target]));
  return lines;
}

function lineOf(data, a, b, ends) {
  const gap = b.y - (a.y + a.height), middle = (one) => one.x + one.width / 2;
  let side = null;
  if (gap <= 0 || columnOf(data, a) !== columnOf(data, b)) side = data.columns[columnOf(data, b)] - 36;
  else if (gap > data.node_height) {
    const between = data.nodes.filter((node) => node.y > a.y + a.height - 1 && node.y + data.node_height < b.y + 1 && columnOf(data, node) === columnOf(data, a));
    const blocking = between.some((node) => node.x < Math.max(middle(a), middle(b)) + 4 && node.x + data.node_width > Math.min(middle(a), middle(b)) - 4);
    if (blocking) side = Math.max(...between.map((node) => node.x + data.node_width)) + 12 + Math.min(20, gap / 60);
  }
  const xs = [a.x, b.x, a.x + a.width, b.x + b.width, ...(side === null ? [] : [side])], ys = [a.y, b.y, a.y + a.height, b.y + b.height];
  const x = Math.min(...xs), y = Math.min(...ys);
  return { a, b, ends, side, x, y, width: Math.max(...xs) - x, height: Math.max(...ys) - y };
}

function columnOf(data, one) {
  let column = 0;
  while (column + 1 < data.columns.length && data.columns[column + 1] - 36 <= one.x) column += 1;
  return column;
}

function searchText(data, node) {
  const tensors = [...node.inputs, ...node.outputs].map((tensor) => data.tensors[tensor].name);
  return [node.id, node.shard, ...node.layers, ...tensors].join('\n').toLowerCase();
}

function spoken(data, node) {
  if (node.kind === 'request') return 'Where the request comes in';
  if (node.kind === 'answer') return 'Where the answer goes out';
  const where = data.devices.length > 1 ? ` on ${data.devices[node.device]}` : '';
  return `${node.shard || 'partition'} ${node.id}${where}, ${plural(node.layers.length, 'layer')}, ${bytes(node.weight_bytes)} of weights`;
}

function panelContent(data, node, place, go) {
  if (node.kind === 'request' || node.kind === 'answer') {
    const isRequest = node.kind === 'request';
    const links = data.edges.filter((edge) => (isRequest ? edge.source : edge.target) === place);
    return [el('h3', { text: isRequest ? 'Request' : 'Answer' }), tensorList(data, links.flatMap((edge) => edge.tensors), isRequest ? 'Brings' : 'Has', () => -1, go)];
  }
  const facts = [['Device', [node.device, ...node.replicas].map((device) => data.devices[device]).join(', ')]];
  if (node.shard) facts.push(['Computes', node.shard]);
  facts.push(['Parameters', count(node.parameters)], ['Weights', bytes(node.weight_bytes)], ['Peak memory', bytes(node.peak_bytes)]);
  if (node.macs !== null) facts.push(['MACs', count(node.macs)]);
  if (node.seconds !== null) facts.push(['Time', seconds(node.seconds)]);
  const list = el('dl', {}, ...facts.flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: value })]));
  const layers = el('ul', { class: 'names', tabindex: 0, 'aria-label': 'Layers' }, ...node.layers.map((name) => el('li', { text: name })));
  const maker = (tensor) => (data.edges.find((edge) => edge.target === place && edge.tensors.includes(tensor)) || { source: -1 }).source;
  const user = (tensor) => (data.edges.find((edge) => edge.source === place && edge.tensors.includes(tensor)) || { target: -1 }).target;
  return [el('h3', { text: node.id }), list, el('h4', { text: plural(node.layers.length, 'layer') }), layers,
    tensorList(data, node.inputs, 'Inputs', maker, go), tensorList(data, node.outputs, 'Outputs', user, go)];
}

function tensorList(data, tensors, title, other, go) {
  const list = el('ul', { class: 'tensors' });
  for (const tensor of tensors) {
    const told = data.tensors[tensor], place = other(tensor);
    const line = el('li', {}, el('span', { class: 'tensor', text: told.name }), el('span', { class: 'soft', text: ` ${told.dtype} ${told.shape}, ${bytes(told.nbytes)}` }));
    if (place >= 0) line.append(el('button', { type: 'button', class: 'link', 'aria-label': `Go to ${data.nodes[place].id}`, text: data.nodes[place].id, on: { click: () => go(place) } }));
    list.append(line);
  }
  return el('div', {}, el('h4', { text: title }), list);
}
