"""The page's own scripts: constant text, into which nothing of a run or a model is put."""

from __future__ import annotations

KEEP_FOCUS = """
let place = null;
const boxOf = (node) => node instanceof Element ? node.closest('.scroll[data-name]') : null;
element.addEventListener('focusin', (event) => {
  const box = boxOf(event.target);
  place = box ? {name: box.dataset.name, left: box.scrollLeft} : null;
});
element.addEventListener('scroll', (event) => {
  const box = boxOf(event.target);
  if (box && place && box.dataset.name === place.name) place.left = box.scrollLeft;
}, true);
element.addEventListener('focusout', (event) => { if (event.relatedTarget) place = null; });
watch('value', () => {
  if (!place || (document.activeElement && document.activeElement !== document.body)) return;
  for (const box of element.querySelectorAll('.scroll[data-name]')) {
    if (box.dataset.name === place.name) {
      const left = place.left;
      box.focus({preventScroll: true});
      box.scrollLeft = left;
    }
  }
});
"""
"""Whoever scrolls a table by keyboard stays in it when it is drawn anew."""

HEAT_TOKENS = """
const list = (title, rows) => {
  const part = document.createElement('div'), head = document.createElement('b'), items = document.createElement('ol');
  head.textContent = title;
  for (const [token, share] of rows) {
    const item = document.createElement('li');
    item.textContent = `${token} ${share.toFixed(1)} %`;
    items.append(item);
  }
  part.append(head, items);
  return part;
};
const show = (token) => {
  const detail = JSON.parse(token.dataset.detail), box = element.querySelector('.tops');
  const said = document.createElement('div');
  said.textContent = `${detail.token}: ${detail.value}`;
  box.replaceChildren(said, list('teacher', detail.teacher), list('student', detail.student));
};
const tokenOf = (event) => event.target instanceof Element ? event.target.closest('.t') : null;
for (const kind of ['focusin', 'mouseover']) {
  element.addEventListener(kind, (event) => { const token = tokenOf(event); if (token) show(token); });
}
element.addEventListener('click', (event) => { const token = tokenOf(event); if (token) token.focus(); });
element.addEventListener('keydown', (event) => {
  const token = tokenOf(event);
  if (!token) return;
  const all = [...element.querySelectorAll('.t')], here = all.indexOf(token);
  const next = {ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0,
    End: all.length - 1}[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const target = all[Math.min(Math.max(next, 0), all.length - 1)];
  token.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
});
"""
"""One stop for the Tab key in a heat map, arrow keys inside it; what is expected at the token in focus stands below."""
