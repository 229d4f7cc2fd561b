// Gradio names the parts of a slider and the menu of tabs in English alone: here they are named in the language of the page.

import {language, t} from "./words.js";

const NAMES = {"number input for ": "slider.number", "range slider for ": "slider.range", "More tabs": "tabs.more"};

function rename() {
  for (const [english, key] of Object.entries(NAMES)) {
    for (const part of document.querySelectorAll(`#tl-tabs [aria-label^="${english}"]`)) {
      part.ariaLabel = t(key, {name: part.ariaLabel.slice(english.length)});
    }
  }
}

// Controls are made when their tab is opened, and again when what it shows changes.
export function nameInOurWords() {
  if (language === "en") return;
  let due = false;
  new MutationObserver((changes) => {
    if (due || changes.every(({target}) => target.closest("#tab-chat"))) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      rename();
    });
  }).observe(document.body, {childList: true, subtree: true, attributeFilter: ["aria-label"]});
}
