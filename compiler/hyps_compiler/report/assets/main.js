// Fills the page.

const report = JSON.parse(section('data').textContent);

function themeButton() {
  const button = section('theme'), dark = matchMedia('(prefers-color-scheme: dark)');
  let chosen = null;
  const isDark = () => (chosen === null ? dark.matches : chosen);
  const tell = () => {
    if (chosen !== null) document.documentElement.dataset.theme = chosen ? 'dark' : 'light';
    button.textContent = isDark() ? 'Light' : 'Dark';
    button.setAttribute('aria-pressed', String(isDark()));
    button.setAttribute('aria-label', isDark() ? 'Switch to light colours' : 'Switch to dark colours');
  };
  button.addEventListener('click', () => { chosen = !isDark(); tell(); });
  dark.addEventListener('change', tell);
  tell();
}

const SECTIONS = {
  layers: layersSection,
  splits: splitsSection,
  memory: memorySection,
  schedule: scheduleSection,
  load_map: loadSection,
};

themeButton();
summarySection(report);
graphSection(report);
for (const [name, run] of Object.entries(SECTIONS)) {
  if (report[name]) run(report);
  else section(name).append(el('p', { class: 'missing', text: report.missing[name] || 'Not known.' }));
}
document.documentElement.dataset.ready = 'yes';
