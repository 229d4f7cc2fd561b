// Every visible word, in the language of the browser or the one that was chosen.

const tables = window.TEXTLOOM?.words ?? {en: {}};

export const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"; // page_head.py puts the chosen one there

// Values take the places that the words leave for them: {n}.
export function t(key, values = {}) {
  const words = tables[language]?.[key] ?? tables.en[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

const number = new Intl.NumberFormat(language);
export const count = (value) => number.format(value);

// How far the load of a model is; what the server says of it may name the model already.
export const loadingWords = ({name, progress}) => (progress.includes(name) ? progress : t("welcome.loading", {name, progress}));

const share = new Intl.NumberFormat(language, {style: "percent", maximumSignificantDigits: 2});
export const percent = (value) => (value < 0.0001 ? `< ${share.format(0.0001)}` : share.format(value));

const short = new Intl.NumberFormat(language, {notation: "compact", maximumSignificantDigits: 3});
export const about = (value) => short.format(value);

export function bytes(size) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (size >= 1000 && at < units.length - 1) {
    size /= 1000;
    at += 1;
  }
  return `${size >= 100 || at === 0 ? Math.round(size) : size.toFixed(1)} ${units[at]}`;
}

export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString(language, {dateStyle: "medium", timeStyle: "short"});
}
