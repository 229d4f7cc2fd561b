// What the page's script finds beside what browsers declare, for the checks alone.

interface Window {
  /** What modules/ui/page_head.py and the script's own parts put there. */
  TEXTLOOM: any;
  textloomChat: any;
}

declare const TEXTLOOM: any;

// What is found by a selector is an element of HTML on this page.
interface Element {
  readonly dataset: DOMStringMap;
  click(): void;
  focus(options?: FocusOptions): void;
}

interface EventTarget {
  closest?(selector: string): any;
}
