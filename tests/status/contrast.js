// Returns [contrast, words] for all words that one can see: the ratio of luminances, from 1 to 21,
// as the Web Content Accessibility Guidelines define it.
const channels = (text) => {
  const numbers = text.match(/[\d.]+(e-?\d+)?/g).map(Number);
  const scale = text.startsWith("color(") ? 255 : 1;
  return [...numbers.slice(0, 3).map((n) => n * scale), numbers[3] ?? 1];
};
const laid = (front, back) => {
  const mixed = [0, 1, 2].map((i) => front[i] * front[3] + back[i] * (1 - front[3]));
  return [...mixed, 1];
};
const behind = (element) => {
  if (element === null) return [255, 255, 255, 1];
  const colour = channels(getComputedStyle(element).backgroundColor);
  return colour[3] === 1 ? colour : laid(colour, behind(element.parentElement));
};
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);

const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (texts.nextNode()) {
  const words = texts.currentNode.data.trim();
  const element = texts.currentNode.parentElement;
  if (words === "" || element.closest("script, style, noscript, .hidden")) continue;
  const style = getComputedStyle(element);
  const back = behind(element);
  const front = laid(channels(element.closest("svg") ? style.fill : style.color), back);
  const [light, dark] = [luminance(front), luminance(back)].sort((a, b) => b - a);
  found.push([(light + 0.05) / (dark + 0.05), words]);
}
return found;
