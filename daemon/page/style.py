"""The style of a page: one column that is as wide as it may be, light or dark as its reader's machine is."""

CSS = """
:root {
  --paper: #fcfcfb; --card: #ffffff; --ink: #1b1e23; --soft: #5c6470; --line: #e1e4e8;
  --good: #2468c4; --bad: #c2372f; --third: #0f8a7e; --queued: #aab2bd; --validating: #cfd5dc;
  --spot: #2a9d8f; --dedicated: #7a5bc7; --preempted: #e08a1e; --merging: #4f8fe0; --warn: #8a5200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --soft: #a0a9b5; --line: #323843;
    --good: #6aa5f5; --bad: #f2766b; --third: #4fc7b8; --queued: #5b6573; --validating: #434c58;
    --spot: #4fc7b8; --dedicated: #a78bfa; --preempted: #f0a848; --merging: #82b4f5; --warn: #f0b65a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 0 0 .6rem; font-size: 1.1rem; }
h3 { margin: 1.1rem 0 .2rem; font-size: .95rem; font-weight: 600; }
p { margin: .4rem 0; }
.soft, figcaption, dt { color: var(--soft); }
.soft, figcaption { font-size: .88rem; }
.warn { color: var(--warn); }
.status { display: inline-block; margin: .5rem .6rem .2rem 0; padding: .1rem .7rem; border-radius: 1rem;
  border: 1.5px solid currentColor; font-weight: 600; font-size: .9rem; color: var(--soft); }
.status.completed { color: var(--third); }
.status.failed, .status.expired { color: var(--bad); }
.status.cancelled { color: var(--warn); }
section { margin-top: 1rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.tiles { display: grid; gap: .6rem; margin: 1rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.tiles div { padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.tiles dt { font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
figure { margin: .2rem 0 0; }
svg { display: block; }
svg text { font-size: 12px; fill: var(--soft); }
.chart { display: flex; } .chart .scale { flex: none; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.touch { fill: transparent; } g:hover .touch { fill: var(--line); }
.track { fill: var(--line); }
.good { fill: var(--good); } .bad { fill: var(--bad); } .third { fill: var(--third); }
.validating { fill: var(--validating); } .queued, .running { fill: var(--queued); }
.merging { fill: var(--merging); }
.spot { fill: var(--spot); } .dedicated { fill: var(--dedicated); } .preempted { fill: var(--preempted); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0 0; padding: 0; list-style: none;
  font-size: .88rem; }
.legend svg { display: inline-block; width: .75rem; height: .75rem; margin-right: .4rem;
  vertical-align: -1px; }
.figures { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: .5rem 0 0; }
.figures div { display: flex; gap: .5rem; } .figures dd { margin: 0; font-weight: 600; }
.facts { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1rem; margin: 0; }
.facts dd { margin: 0; }
ol.steps, ul.kinds { margin: .8rem 0 0; padding: 0; list-style: none; font-size: .92rem; }
ol.steps li { display: grid; grid-template-columns: 12rem 11rem 5.5rem 1fr; gap: 0 .8rem; padding: .35rem 0;
  border-top: 1px solid var(--line); }
ul.kinds li { padding: .6rem 0; border-top: 1px solid var(--line); }
ul.kinds .head { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .3rem; }
ul.kinds .head span { flex: none; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details summary { margin-top: .6rem; cursor: pointer; color: var(--soft); font-size: .92rem; }
footer { margin-top: 1.5rem; }
@media (max-width: 640px) {
  .minor { display: none; }
  h1 { font-size: 1.35rem; }
  section { padding: .8rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles dd { font-size: 1.1rem; }
  ol.steps li { grid-template-columns: 1fr auto; }
  ol.steps .when, ol.steps .why { grid-column: 1 / -1; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
}
"""
