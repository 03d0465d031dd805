// The sections: each takes its part of the report and fills its element.

function summarySection(report) {
  const [lead, rest] = [report.facts.slice(0, 5), report.facts.slice(5)];
  const cards = el('div', { class: 'cards' });
  for (const fact of lead) {
    cards.append(el('div', { class: 'card' }, el('p', { class: 'label', text: fact.label }), el('p', { class: 'value', text: fact.value }), fact.note ? el('p', { class: 'soft', text: fact.note }) : null));
  }
  const list = el('dl', { class: 'facts' });
  for (const fact of rest) {
    list.append(el('dt', { text: fact.label }), el('dd', {}, el('span', { class: 'break', text: fact.value }), fact.note ? el('span', { class: 'soft', text: ` ${fact.note}` }) : null));
  }
  section('summary').append(cards, list);
}

function graphSection(report) {
  const host = section('partitions'), data = report.graph;
  partitionGraph(data, host);
  const rows = data.nodes.filter((node) => node.kind === 'V' || node.kind === 'H').map((node) => [
    node.id, node.shard || 'V', data.devices[node.device], node.layers.join(', '), count(node.parameters), bytes(node.weight_bytes), bytes(node.peak_bytes), node.seconds === null ? '' : seconds(node.seconds),
  ]);
  host.append(details('All partitions', ['partition', 'kind', 'device', 'layers', right('parameters'), right('weights'), right('peak'), right('time')], rows));
}

// Layers: bytes and seconds over one axis.

function layersSection(report) {
  const host = section('layers'), data = report.layers, rows = data.rows;
  const options = { log: true };
  const hasTimes = data.profiles.length > 0;
  const sizes = rows.map((row) => row.cut_bytes || 0), most = Math.max(1, data.input_bytes || 0, ...sizes);
  const least = Math.min(...sizes.filter((value) => value > 0), most);
  const longest = Math.max(1e-9, ...rows.flatMap((row) => row.seconds));

  function draw(svg, width, state) {
    const left = LEFT, rightEdge = width - 10, top = 40, tall = 210;
    const sizeBox = { left, right: rightEdge, top, bottom: top + tall };
    const timeBox = { left, right: rightEdge, top: top + tall + 52, bottom: top + tall + 52 + 150 };
    const last = hasTimes ? timeBox : sizeBox;
    const places = bands(sizeBox, rows.length);
    const y = upAxis(svg, sizeBox, most, bytes, options.log, least);
    svg.append(label(4, 16, 'Bytes across a cut behind each layer', 'start', 'axis'));
    rows.forEach((row, i) => {
      if (!row.cut_bytes) return;
      const at = y(row.cut_bytes);
      svg.append(shape('rect', { class: 's0', x: places.start(i) + places.width * 0.1, y: at, width: Math.max(1, places.width * 0.8), height: Math.max(1, sizeBox.bottom - at) }));
    });
    if (data.input_bytes) {
      const at = y(data.input_bytes);
      svg.append(shape('line', { class: 'level', x1: left, x2: rightEdge, y1: at, y2: at }));
    }
    if (hasTimes) drawTimes(svg, timeBox, places);
    drawSplits(svg, places, hasTimes ? [sizeBox, timeBox] : [sizeBox], y);
    bandAxis(svg, last, places, rows.length, 'layers in running order');
    state.cursor = { count: rows.length, find: (x) => places.find(x), text: layerText, area: (i) => [places.start(i), top, places.width, last.bottom - top] };
    return last.bottom + 52;
  }

  function drawTimes(svg, box, places) {
    const y = upAxis(svg, box, longest, seconds, options.log, longest / 1e4);
    svg.append(label(4, box.top - 22, 'Time of each layer', 'start', 'axis'));
    const number = data.profiles.length, width = (places.width * 0.8) / number;
    rows.forEach((row, i) => row.seconds.forEach((value, k) => {
      if (value <= 0) return;
      const at = y(value), x = places.start(i) + places.width * 0.1 + k * width;
      svg.append(shape('rect', { class: `s${(k + 1) % 8}`, x, y: at, width: Math.max(1, width), height: Math.max(1, box.bottom - at) }));
    }));
  }

  function drawSplits(svg, places, boxes, y) {
    const rule = (kind, x) => boxes.forEach((box) => svg.append(shape('line', { class: kind, x1: x, x2: x, y1: box.top, y2: box.bottom })));
    rows.forEach((row, i) => {
      const x = places.start(i + 1);
      if (row.split === 'cut') rule('cut', x);
      if (row.split === 'point') boxes.forEach((box) => svg.append(shape('line', { class: 'possible', x1: x, x2: x, y1: box.bottom - 4, y2: box.bottom + 7 })));
      if (row.split === 'cut') svg.append(mark('down', x, boxes[0].top - 7, 'cutmark'));
      const symbol = layerMark(row);
      if (!symbol) return;
      const size = Math.max(0.55, Math.min(1, places.width / 13)), drawn = mark(symbol, 0, 0, symbol === 'diamond' ? 'narrow' : 'pool');
      svg.append(fill(drawn, { transform: `translate(${places.middle(i).toFixed(1)} ${(y(row.cut_bytes || least) - 9 * size).toFixed(1)}) scale(${size.toFixed(2)})` }));
    });
  }

  function layerText(i) {
    const row = rows[i];
    const parts = [`${i + 1}. ${row.name} (${row.kind})`, `output ${row.shape}`];
    parts.push(row.cut_bytes === null ? 'no cut behind it' : `${bytes(row.cut_bytes)} cross behind it${row.ratio === null ? '' : `, ${three(row.ratio)} of the input`}`);
    row.seconds.forEach((value, k) => parts.push(`${seconds(value)} on ${data.profiles[k]}`));
    if (row.marks.length) parts.push(row.marks.map(markWords).join(', '));
    if (row.split) parts.push(row.split === 'cut' ? `the plan is cut here: ${row.reason}` : `split point: ${row.reason}`);
    return parts.join(' · ');
  }

  const made = chart('Bytes across each border and time of each layer', draw);
  const scale = choice('Scale', [['log', 'Logarithmic'], ['linear', 'Linear']], (value) => { options.log = value === 'log'; made.state.redraw(); });
  const entries = [['s0', 'bytes that cross'], ['level', 'the model\'s input', 'level'], ['cut', 'cut by the plan', 'line'], ['possible', 'known split point', 'line'], ['narrow', 'natural bottleneck', 'diamond'], ['pool', 'pooling or strided convolution', 'dot']];
  data.profiles.forEach((name, k) => entries.push([`s${(k + 1) % 8}`, `time on ${name}`]));
  host.append(el('div', { class: 'tools' }, scale), made.node, legend(entries));
  for (const text of data.notes || []) host.append(note(`Note: ${text}.`));
  if (report.missing.times) host.append(note(report.missing.times));
  const heads = ['layer', 'type', 'output', right('parameters'), right('crosses'), right('ratio'), ...data.profiles.map((name) => right(`on ${name}`)), 'marks', 'split point'];
  host.append(details('All layers', heads, rows.map((row) => [
    row.name, row.kind, row.shape, count(row.parameters), row.cut_bytes === null ? '' : bytes(row.cut_bytes), row.ratio === null ? '' : three(row.ratio), ...row.seconds.map(seconds), row.marks.map(markWords).join(', '), row.split ? `${row.split === 'cut' ? 'cut: ' : ''}${row.reason}` : '',
  ])));
}

const markWords = (name) => ({ natural: 'natural bottleneck', compressive: 'compressive bottleneck' })[name] || name;
const layerMark = (row) => (row.marks.some((name) => name === 'natural' || name === 'compressive') ? 'diamond' : row.marks.length ? 'dot' : '');

// Split points: what each would cost.

const PARTS = [['device_s', 's0', ''], ['transfer_s', 's1', 'hatch'], ['server_s', 's2', ''], ['queue_s', 's3', 'cross']];
const total = (split) => split.device_s + split.transfer_s + split.server_s + split.queue_s;

function splitsSection(report) {
  const host = section('splits'), data = report.splits;
  let target = data.targets[0];
  const names = () => ({ device_s: data.entry, transfer_s: 'transfer', server_s: target.device, queue_s: 'waiting for other requests' });
  const hasQueue = data.targets.some((one) => one.splits.some((split) => split.queue_s > 0));
  const parts = PARTS.filter(([key]) => key !== 'queue_s' || hasQueue);

  function draw(svg, width, state) {
    const box = { left: LEFT, right: width - 10, top: 44, bottom: 330 }, splits = target.splits;
    const highest = Math.max(data.planned_s || 0, ...splits.map(total));
    const y = upAxis(svg, box, highest, seconds, false, 0), places = bands(box, splits.length);
    splits.forEach((split, i) => {
      let from = 0;
      for (const [key, colour, hatch] of parts) {
        const upper = y(from + split[key]), height = y(from) - upper;
        from += split[key];
        if (height < 0.05) continue;
        const area = { x: places.start(i) + places.width * 0.08, y: upper, width: Math.max(1, places.width * 0.84), height };
        svg.append(shape('rect', { class: `${colour}${split.broken ? ' faint' : ''}`, ...area }));
        if (hatch) svg.append(shape('rect', { class: hatch, ...area }));
      }
      if (split.broken) svg.append(label(places.middle(i), box.bottom - 4, '×', 'middle', 'bad'));
    });
    if (data.planned_s) svg.append(shape('line', { class: 'level', x1: box.left, x2: box.right, y1: y(data.planned_s), y2: y(data.planned_s) }));
    for (const i of target.chosen) svg.append(mark('down', places.middle(i), Math.max(12, y(total(splits[i])) - 12 - (i === target.best ? 20 : 0)), 'cutmark'));
    if (target.best >= 0) svg.append(mark('star', places.middle(target.best), y(total(splits[target.best])) - 12, 'best'));
    svg.append(label(4, 16, 'One request, by where the model is split', 'start', 'axis'));
    const every = Math.max(1, Math.ceil((splits.length * 44) / (box.right - box.left)));
    for (let i = 0; i < splits.length; i += every) svg.append(label(places.middle(i), box.bottom + 20, String(splits[i].position), 'middle'));
    svg.append(label((box.left + box.right) / 2, box.bottom + 42, `all on ${shortened(target.device, 18)} ← split → all on ${shortened(data.entry, 18)}`, 'middle', 'axis'));
    state.cursor = { count: splits.length, find: (x) => places.find(x), text: splitText, area: (i) => [places.start(i), box.top, places.width, box.bottom - box.top] };
    return box.bottom + 54;
  }

  function splitText(i) {
    const split = target.splits[i], told = names();
    const where = split.after ? (i === target.splits.length - 1 ? `everything on ${data.entry}` : `split behind ${split.after}`) : `everything on ${target.device}`;
    const shares = parts.filter(([key]) => split[key] > 0).map(([key]) => `${told[key]} ${seconds(split[key])}`);
    const flags = [i === target.best ? 'the least' : '', target.chosen.includes(i) ? 'chosen by the plan' : '', split.broken ? `breaks ${split.broken}` : ''].filter(Boolean);
    return [where, `${seconds(total(split))} in all`, shares.join(' + '), `${bytes(split.wire_bytes)} sent`, ...flags].join(' · ');
  }

  const made = chart('Seconds of one request for every split point', draw);
  const keys = el('div', {}), summary = el('p', { class: 'lead' }), figures = el('div', {});

  function tell() {
    const told = names(), best = target.splits[target.best];
    const entries = parts.map(([key, colour]) => [colour, told[key]]);
    entries.push(['best', 'the least', 'star'], ['cutmark', 'where the plan changes device', 'down']);
    if (data.planned_s) entries.push(['level', `the plan: ${seconds(data.planned_s)}`, 'level']);
    if (target.splits.some((split) => split.broken)) entries.push(['faint s0', '× breaks a limit']);
    keys.replaceChildren(legend(entries));
    summary.textContent = best ? `Least of ${plural(target.splits.length, 'split')} with ${target.device}: ${splitText(target.best)}.` : `No split with ${target.device} keeps the limits.`;
    figures.replaceChildren(details(`Splits with ${target.device}`, ['behind layer', right('in all'), ...parts.map(([key]) => right(told[key])), right('sent'), 'remark'], target.splits.map((split, i) => [
      split.after || '(all away)', seconds(total(split)), ...parts.map(([key]) => seconds(split[key])), bytes(split.wire_bytes), [i === target.best ? 'least' : '', target.chosen.includes(i) ? 'chosen' : '', split.broken].filter(Boolean).join(', '),
    ])));
  }

  if (data.targets.length > 1) {
    host.append(el('div', { class: 'tools' }, choice('Rest runs on', data.targets.map((one, i) => [i, one.device]), (i) => { target = data.targets[i]; made.state.at = -1; made.state.redraw(); tell(); })));
  }
  host.append(summary, made.node, keys, figures);
  tell();
  for (const text of data.notes || []) host.append(note(`Note: ${text}.`));
}

// Memory over the course of a request.

function memorySection(report) {
  const host = section('memory'), data = report.memory, isTimed = data.unit === 's';
  for (const device of data.devices) {
    const held = device.moments.map((moment) => device.base_bytes + device.kept_bytes + moment.weight_bytes + moment.tensor_bytes);
    const layers = [['base_bytes', 's6', ''], ['kept_bytes', 's0', ''], ['weight_bytes', 's1', 'hatch'], ['tensor_bytes', 's2', '']];
    const words = { base_bytes: 'the process itself', kept_bytes: 'weights that stay', weight_bytes: 'weights in passing', tensor_bytes: 'activations and kernels' };
    const value = (moment, key) => (key in moment ? moment[key] : device[key]);
    const end = device.moments.length ? device.moments[device.moments.length - 1].end : 1;
    const hasMeasured = device.moments.some((moment) => moment.measured_bytes);

    const draw = (svg, width, state) => {
      const box = { left: LEFT, right: width - 12, top: 48, bottom: 290 };
      const y = upAxis(svg, box, Math.max(device.budget_bytes || 0, device.peak_bytes, ...device.moments.map((m) => m.measured_bytes || 0)) * 1.02, bytes, false, 0);
      const x = isTimed ? timeAxis(svg, box, end, seconds) : (at) => box.left + (at / end) * (box.right - box.left);
      if (!isTimed) svg.append(label((box.left + box.right) / 2, box.bottom + 22, 'partitions in running order', 'middle'));
      const floor = device.moments.map(() => 0);
      for (const [key, colour, hatch] of layers) {
        const path = device.moments.map((moment, i) => {
          const low = floor[i];
          floor[i] += value(moment, key);
          const a = x(moment.start).toFixed(1), b = x(moment.end).toFixed(1);
          return floor[i] > low ? `M${a} ${y(low).toFixed(1)}V${y(floor[i]).toFixed(1)}H${b}V${y(low).toFixed(1)}Z` : '';
        }).join('');
        svg.append(shape('path', { class: colour, d: path }));
        if (hatch) svg.append(shape('path', { class: hatch, d: path }));
      }
      const peaks = device.moments.filter((moment) => moment.measured_bytes).map((moment) => [x((moment.start + moment.end) / 2), y(moment.measured_bytes)]);
      if (peaks.length) svg.append(shape('polyline', { class: 'measured', points: peaks.map((place) => place.map((at) => at.toFixed(1)).join(',')).join(' ') }));
      if (device.budget_bytes) svg.append(shape('line', { class: 'budget', x1: box.left, x2: box.right, y1: y(device.budget_bytes), y2: y(device.budget_bytes) }));
      const peak = device.moments[device.peak_at], px = x((peak.start + peak.end) / 2);
      svg.append(mark('down', px, y(device.peak_bytes) - 9, 'cutmark'));
      svg.append(label(Math.max(box.left, Math.min(px, box.right)), 18, `peak ${bytes(device.peak_bytes)} in ${peak.partition}`, px < width / 3 ? 'start' : px > (2 * width) / 3 ? 'end' : 'middle', 'strong'));
      state.cursor = {
        count: device.moments.length,
        find: (at) => (at < box.left - 8 || at > box.right + 8 ? -1 : device.moments.findIndex((moment) => x(moment.end) >= at)),
        text: (i) => {
          const moment = device.moments[i];
          const when = isTimed ? `${seconds(moment.start)} to ${seconds(moment.end)}` : `step ${i + 1}`;
          const shares = layers.filter(([key]) => value(moment, key) > 0).map(([key]) => `${words[key]} ${bytes(value(moment, key))}`);
          return [`${moment.partition} ${moment.what === 'load' ? 'is loaded' : 'runs'}`, when, `${bytes(held[i])} resident`, shares.join(' + '), moment.measured_bytes ? `measured at most ${bytes(moment.measured_bytes)}` : ''].filter(Boolean).join(' · ');
        },
        area: (i) => [x(device.moments[i].start), box.top, x(device.moments[i].end) - x(device.moments[i].start), box.bottom - box.top],
      };
      return box.bottom + 34;
    };

    const swapped = device.swapped ? `${device.kept} of ${device.kept + device.swapped} partitions stay loaded, the others are loaded for their turn` : `all ${plural(device.kept, 'partition')} stay loaded`;
    const room = device.budget_bytes ? `peak ${bytes(device.peak_bytes)} of ${bytes(device.budget_bytes)}` : `peak ${bytes(device.peak_bytes)}, no budget`;
    if (data.devices.length > 1) host.append(el('h3', { text: device.device }));
    host.append(el('p', { class: 'lead', text: `One request: ${room}; ${swapped}.` }));
    const entries = layers.filter(([key]) => key === 'base_bytes' || device.moments.some((moment) => value(moment, key) > 0)).map(([key, colour]) => [colour, words[key]]);
    if (device.budget_bytes) entries.push(['budget', `budget ${bytes(device.budget_bytes)}`, 'level']);
    if (hasMeasured) entries.push(['measured', 'measured peaks', 'level']);
    const made = chart(`Memory of ${device.device} during one request`, draw);
    host.append(made.node, legend(entries), details(`Memory of ${device.device}`, ['partition', 'what', right(isTimed ? 'from' : 'step'), right('weights in passing'), right('activations'), right('resident')],
      device.moments.map((moment, i) => [moment.partition, moment.what === 'load' ? 'is loaded' : 'runs', isTimed ? seconds(moment.start) : i + 1, bytes(moment.weight_bytes), bytes(moment.tensor_bytes), bytes(held[i])])));
  }
  if (data.load_bytes_per_s) host.append(note(`Note: weights are taken to be read at ${bytes(data.load_bytes_per_s)}/s; hypsc report --run measures it.`));
}

// Schedule.

function scheduleSection(report) {
  const host = section('schedule'), data = report.schedule, lane = 56, areMany = data.bars.some((bar) => bar.request);
  const draw = (svg, width, state) => {
    const box = { left: 8, right: width - 12, top: 8, bottom: 8 + data.rows.length * lane };
    const x = timeAxis(svg, box, data.end_s, seconds);
    data.rows.forEach((name, row) => svg.append(label(box.left + 2, box.top + row * lane + 18, shortened(name, 44), 'start', 'strong')));
    const area = (bar) => ({ x: x(bar.start_s), y: box.top + bar.row * lane + 24, width: Math.max(1, x(bar.end_s) - x(bar.start_s)), height: lane - 30 });
    for (const bar of data.bars) {
      const at = area(bar), colour = `s${bar.request % 8}`;
      svg.append(shape('rect', { class: at.width > 4 ? `${colour} bar` : colour, rx: Math.min(3, at.width / 3), ...at }));
      if (bar.kind === 'load') svg.append(shape('rect', { class: 'hatch', ...at }));
      const text = areMany ? String(bar.request) : bar.name;
      if (at.width > text.length * NODE_TEXT + 8) svg.append(label(at.x + at.width / 2, at.y + 18, text, 'middle', 'onbar'));
    }
    state.cursor = {
      count: data.bars.length,
      find: (px, py) => data.bars.findIndex((bar) => { const at = area(bar); return px >= at.x - 2 && px <= at.x + at.width + 2 && py >= at.y - 14 && py <= at.y + at.height + 4; }),
      text: (i) => {
        const bar = data.bars[i], what = { compute: 'runs', load: 'is loaded', transfer: 'travels' }[bar.kind];
        return `${data.rows[bar.row]} · request ${bar.request}: ${bar.name} ${what} · ${seconds(bar.start_s)} to ${seconds(bar.end_s)} (${seconds(bar.end_s - bar.start_s)})`;
      },
      area: (i) => { const at = area(data.bars[i]); return [at.x, at.y, at.width, at.height]; },
    };
    return box.bottom + 34;
  };
  const made = chart('Schedule of the first requests', draw);
  const width = choice('Width', [[1, 'Fit'], [3, '× 3'], [10, '× 10']], (zoom) => { made.state.zoom = zoom; made.state.redraw(); });
  const entries = [];
  if (areMany) for (const request of [...new Set(data.bars.map((bar) => bar.request))].sort((a, b) => a - b)) entries.push([`s${request % 8}`, `request ${request}`]);
  else entries.push(['s0', data.rows.length > 1 ? 'busy with the request' : 'runs a partition']);
  if (data.bars.some((bar) => bar.kind === 'load')) entries.push(['hatch', 'is loaded']);
  put(host, el('p', { class: 'lead', text: `${data.how[0].toUpperCase()}${data.how.slice(1)}: ${seconds(data.end_s)} in all.` }), el('div', { class: 'tools' }, width), made.node, legend(entries),
    report.memory && report.memory.load_bytes_per_s && data.bars.some((bar) => bar.kind === 'load') ? note(`Note: weights are taken to be read at ${bytes(report.memory.load_bytes_per_s)}/s.`) : null,
    details('The schedule', ['name', 'where', right('request'), 'what', right('from'), right('to')], data.bars.map((bar) => [bar.name, data.rows[bar.row], bar.request, bar.kind, seconds(bar.start_s), seconds(bar.end_s)])));
}

// Batch x rate.

function loadSection(report) {
  const host = section('load_map'), data = report.load_map, holder = el('div', {});
  const all = data.cells.flat().filter((cell) => !cell.is_over);
  const best = data.cells.map((row) => {
    const fine = row.map((cell, i) => [cell.is_over ? Infinity : cell.p95_s, i]).sort((a, b) => a[0] - b[0])[0];
    return fine && fine[0] < Infinity ? fine[1] : -1;
  });

  function grid(kind) {
    const values = all.map((cell) => cell[kind]), low = Math.min(...values), high = Math.max(...values);
    const level = (value) => (high > low ? Math.min(6, Math.floor((Math.log(value / low) / Math.log(high / low)) * 7)) : 0);
    const heads = el('tr', {}, el('th', { scope: 'col', text: 'requests/s' }), ...data.batches.map((batch) => el('th', { scope: 'col', text: `batch ${batch}` })));
    const rows = data.rates.map((value, r) => el('tr', {}, el('th', { scope: 'row', text: rate(value) }), ...data.cells[r].map((cell, b) => {
      const text = kind === 'p95_s' ? (cell.is_over ? 'over' : seconds(cell.p95_s)) : `${rate(cell.throughput_rps)}/s`;
      const isBest = kind === 'p95_s' && b === best[r];
      const words = `batch ${data.batches[b]}, ${rate(value)} requests/s: ${cell.is_over ? 'more than can be answered' : `95 % within ${seconds(cell.p95_s)}`}, ${rate(cell.throughput_rps)} answered a second`;
      const colour = cell.is_over && kind === 'p95_s' ? 'over' : `h${level(cell[kind])}`;
      return el('td', { class: `${colour}${isBest ? ' least' : ''}`, title: words }, el('span', { text: isBest ? `★ ${text}` : text }));
    })));
    const caption = kind === 'p95_s' ? 'Latency that 95 % of the requests do not exceed' : 'Requests answered in a second';
    holder.replaceChildren(el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, el('table', { class: 'heat' }, el('caption', { text: caption }), el('thead', {}, heads), el('tbody', {}, ...rows))));
  }

  host.append(el('p', { class: 'lead', text: `Requests arrive at random moments, wait until their batch is full, and are computed and sent together; ${data.requests} simulated for each cell.` }),
    el('div', { class: 'tools' }, choice('Show', [['p95_s', 'Latency (95 %)'], ['throughput_rps', 'Throughput']], grid)), holder,
    legend([['h0', 'least'], ['h3', 'between'], ['h6', 'most'], ['over', 'over: more arrives than can be answered'], ['best', 'best batch size at this rate', 'star']]));
  grid('p95_s');
  for (const text of data.notes || []) host.append(note(`Note: ${text}.`));
}
