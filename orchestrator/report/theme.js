// Light or dark: as the system has it, or as the reader chose for this visit.
const THEMES = ['system', 'light', 'dark'];
const systemDark = matchMedia('(prefers-color-scheme: dark)');
let forPaper = false;

function chosenTheme() {
  try {
    return sessionStorage.getItem('upshot-theme') ?? 'system';
  } catch {
    return document.documentElement.dataset.theme ?? 'system'; // a browser that keeps nothing for files
  }
}

// The theme that is to be seen now; paper is white.
function theme() {
  const choice = chosenTheme();
  return forPaper ? 'light' : choice === 'system' ? (systemDark.matches ? 'dark' : 'light') : choice;
}

function setTheme(choice) {
  try {
    sessionStorage.setItem('upshot-theme', choice);
  } catch { /* it then holds for this page alone */ }
  applyTheme(choice);
}

function applyTheme(choice) {
  const root = document.documentElement;
  if (choice === 'system') delete root.dataset.theme;
  else root.dataset.theme = choice;
}

function makeThemeButton() {
  const place = document.getElementById('theme');
  const write = () => { place.textContent = `Theme: ${chosenTheme()}`; };
  applyTheme(chosenTheme());
  place.addEventListener('click', () => {
    setTheme(THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length]);
    write();
    recolour();
  });
  write();
  place.hidden = false;
  systemDark.addEventListener('change', recolour);
}
