"use strict";
for (const board of document.querySelectorAll(".board")) {
  const points = [...board.children].map(e => ({e, x: parseFloat(e.style.left), y: parseFloat(e.style.top)}));
  const towards = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  board.addEventListener("focusin", event => {
    for (const point of board.querySelectorAll('[tabindex="0"]')) point.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  board.addEventListener("keydown", event => {
    const way = towards[event.key], here = points.find(point => point.e === document.activeElement);
    if (event.key === "Escape") document.activeElement.blur();
    if (!way || !here) return;
    event.preventDefault();
    let best = null, least = Infinity;
    for (const point of points) {
      const along = (point.x - here.x) * way[0] + (point.y - here.y) * way[1];
      const beside = Math.abs((point.x - here.x) * way[1]) + Math.abs((point.y - here.y) * way[0]);
      if (along <= 0 || beside > along || getComputedStyle(point.e).pointerEvents === "none") continue;
      if (along + beside < least) [best, least] = [point.e, along + beside];
    }
    if (best) best.focus();
  });
}
