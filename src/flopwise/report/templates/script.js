"use strict";
(function () {
  const tip = document.getElementById("tip");
  function show(target) {
    tip.textContent = target.dataset.tip;
    tip.classList.add("on");
    const at = target.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - box.width / 2), window.innerWidth - box.width - 8);
    const above = at.top - box.height - 6;
    tip.style.transform = "translate(" + left + "px," + (above > 8 ? above : at.bottom + 6) + "px)";
  }
  function hide() { tip.classList.remove("on"); }
  function follow(event) {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    if (target) { show(target); } else { hide(); }
  }
  document.addEventListener("pointerover", follow);
  document.addEventListener("click", follow);
  document.addEventListener("scroll", hide, { passive: true, capture: true });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  });
})();
