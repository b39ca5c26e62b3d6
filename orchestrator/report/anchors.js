(() => {
'use strict';
// The part that the page's address names is opened, as are those that it lies in.
const open = () => {
  const name = location.hash.slice(1);
  const part = name && document.getElementById(name);
  if (!part) return;
  for (let at = part; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true;
  part.scrollIntoView();
};
addEventListener('hashchange', open);
open();
})();
