// What scrolls sideways can be reached, and so scrolled, from the keyboard.
const makeFocusable = () => {
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("DOMContentLoaded", makeFocusable);
addEventListener("load", makeFocusable);
addEventListener("resize", makeFocusable);
