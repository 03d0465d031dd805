() => {
  // Of every piece of text on the page: its contrast with what lies behind it, its size in pixels, its beginning.
  const numbers = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || ['SCRIPT', 'NOSCRIPT'].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), isDrawn = node instanceof SVGElement;
    if (isDrawn && node.classList.contains('onbar')) continue; // below, against every colour a bar can have
    const own = light(numbers(isDrawn ? style.fill : style.color));
    found.push([ratio(own, light(behind(node))), parseFloat(style.fontSize), node.textContent.slice(0, 40)]);
  }
  const probe = document.createElement('i');
  document.body.append(probe);
  const value = (name) => {
    probe.style.color = `var(${name})`;
    return light(numbers(getComputedStyle(probe).color));
  };
  for (let i = 0; i < 8; i += 1) found.push([ratio(value('--on'), value(`--s${i}`)), 14, `text on bars of colour ${i}`]);
  probe.remove();
  return found;
}
