// Beside the page's own functions: forget everything, and see these answers come in.
function forget() {
  Object.assign(page, { points: [], now: null, watched: new Map(), silence: null });
  Object.assign(page, { restarted: null, mixed: false });
  lookedAt = null;
}

// Each answer is [time, text, steady]: milliseconds, null for none, and another clock's milliseconds.
// Returns what was counted lately, and the verdict.
function after(answers) {
  for (const [time, text, steady] of answers) {
    note(text === null ? null : snapshotOf(text), "Why.", time, steady ?? time);
  }
  const newest = page.points.length - 1;
  const minute = over(page.points, newest, RECENT);
  return [over(page.points, newest, SMOOTH), verdictOf({ ...page, minute, time: answers.at(-1)[0] })];
}
