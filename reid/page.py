"""Comparisons → one static web page that a biologist can leaf through, offline.

Words and relative file names in, HTML out. Must not know pixels, stores or how anything was found. The page needs no
network and no server; without scripts it shows everything one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Entry:
    """One pair on the page. `facts` are sentences; `warning` is shown in a frame where it is not empty; `pictures` by
    the names of `reid.compare.Comparison` are paths relative to the page; `skipped` says why one is missing."""

    title: str
    facts: tuple[str, ...]
    warning: str
    pictures: Mapping[str, str]
    skipped: Mapping[str, str]


SECTIONS = {
    "matches": (
        "Points that match",
        "Each line joins a place in A to the place in B that looks the same. Lines are drawn only where the places "
        "also lie in the same arrangement in both photos. The white frame is the animal's box.",
    ),
    "warp": (
        "One laid over the other",
        "A is turned and stretched until the matching points meet. Move the slider: in two photos of one animal the "
        "marks stay where they are.",
    ),
    "heat": (
        "What made the photos look alike to the model",
        "Parts of one photo are covered, one after the other. Orange: covering this part makes the two less alike, so "
        "it speaks for one animal. Blue: covering it makes them more alike.",
    ),
}


def page(heading: str, lead: str, entries: Sequence[Entry]) -> str:
    """The whole page as text. Names are escaped; they may hold anything."""
    parts = [
        f'<!doctype html>\n<html lang="en-GB"><head><meta charset="utf-8"><title>{escape(heading)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<header><h1>{escape(heading)}</h1><p>{escape(lead)}</p>",
    ]
    if len(entries) > 1:
        buttons = "".join(f'<button type="button">{escape(entry.title)}</button>' for entry in entries)
        parts.append(f'<nav aria-label="candidates">{buttons}</nav><p class="hint">Arrow keys leaf through.</p>')
    parts.append("</header><main>")
    parts.extend(_section(entry) for entry in entries)
    parts.append(f"</main><script>{_SCRIPT}</script></body></html>\n")
    return "".join(parts)


def index(heading: str, links: Sequence[tuple[str, str]]) -> str:
    """A page that leads to several: `(words, relative address)`."""
    items = "".join(f'<li><a href="{_address(to)}">{escape(words)}</a></li>' for words, to in links)
    return (
        f'<!doctype html>\n<html lang="en-GB"><head><meta charset="utf-8"><title>{escape(heading)}</title>'
        f"<style>{_STYLE}</style></head><body><header><h1>{escape(heading)}</h1></header><main><ul>{items}</ul></main>"
        "</body></html>\n"
    )


def _section(entry: Entry) -> str:
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in entry.facts)
    warning = f'<p class="warning"><strong>Look twice.</strong> {escape(entry.warning)}</p>' if entry.warning else ""
    bodies = {
        "matches": _matches(entry),
        "warp": _slider(entry),
        "heat": _heat(entry),
    }
    blocks = ""
    for name, (title, words) in SECTIONS.items():
        missing = entry.skipped.get(name, "")
        note = f'<p class="missing">Not shown: {escape(missing)}.</p>' if missing else ""
        if bodies[name] or note:
            about = f"<p>{words}</p>" if bodies[name] and not (name == "matches" and missing) else ""
            blocks += f"<h3>{title}</h3>{about}{note}{bodies[name]}"
    missing = entry.skipped.get("photo", "")
    if missing:
        blocks = f'<p class="missing">Not compared: {escape(missing)}.</p>'
    return f'<section class="pair"><h2>{escape(entry.title)}</h2><ul>{facts}</ul>{warning}{blocks}</section>'


def _matches(entry: Entry) -> str:
    return _image(entry, "matches", "both photos with lines between matching points")


def _slider(entry: Entry) -> str:
    if not {"warp_a", "warp_b"} <= entry.pictures.keys():
        return ""
    return (
        '<div class="slider"><div class="stack">'
        + _image(entry, "warp_b", "photo B")
        + _image(entry, "warp_a", "photo A, laid over photo B")
        + '</div><label>B <input type="range" min="0" max="100" value="50" aria-label="how much of A is shown"> A</label>'
        + "</div>"
    )


def _heat(entry: Entry) -> str:
    shown = "".join(
        f"<figure>{_image(entry, name, f'heat over photo {letter}')}<figcaption>{letter}</figcaption></figure>"
        for name, letter in (("heat_a", "A"), ("heat_b", "B"))
        if name in entry.pictures
    )
    missing = "".join(
        f'<p class="missing">Not shown for {letter}: {escape(entry.skipped[name])}.</p>'
        for name, letter in (("heat_a", "A"), ("heat_b", "B"))
        if name in entry.skipped
    )
    return f'<div class="two">{shown}</div>{missing}' if shown else missing


def _image(entry: Entry, name: str, words: str) -> str:
    if name not in entry.pictures:
        return ""
    return f'<img class="{name}" src="{_address(entry.pictures[name])}" alt="{escape(words)}">'


def _address(path: str) -> str:
    return escape(quote(path))


_STYLE = """
:root{color-scheme:light}
body{margin:0;font:18px/1.45 system-ui,sans-serif;color:#182026;background:#fafaf7}
header,main{max-width:1100px;margin:0 auto;padding:0 20px}
h1{font-size:28px;margin:20px 0 4px}h2{font-size:24px;margin:16px 0 4px}h3{font-size:20px;margin:26px 0 2px}
p{margin:6px 0}.hint,.missing{color:#5a6268}
nav{display:flex;flex-wrap:wrap;gap:8px;margin:12px 0 2px}
nav button{font:inherit;padding:6px 14px;border:2px solid #969ca0;border-radius:6px;background:#fff;cursor:pointer}
nav button[aria-current=true]{border-color:#0072b2;background:#0072b2;color:#fff}
.warning{border:3px solid #d55e00;border-radius:6px;padding:8px 14px;background:#fff3ea}
img{max-width:100%;height:auto;display:block}
.stack{position:relative;--at:50%}
.stack img{width:100%}
.stack .warp_a{position:absolute;inset:0;height:100%;clip-path:inset(0 calc(100% - var(--at)) 0 0)}
.stack::after{content:"";position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#d55e00}
.slider label{display:flex;gap:12px;align-items:center;margin:8px 0}
.slider input{flex:1;height:28px;accent-color:#d55e00}
.two{display:flex;gap:12px;flex-wrap:wrap}.two figure{flex:1 1 380px;margin:0}
"""

_SCRIPT = """
"use strict";
document.querySelectorAll(".slider").forEach(function(box){
  var stack=box.querySelector(".stack"),range=box.querySelector("input");
  function set(value){range.value=value;stack.style.setProperty("--at",value+"%")}
  range.addEventListener("input",function(){set(range.value)});
  stack.addEventListener("pointermove",function(event){
    if(event.buttons!==1&&event.pointerType!=="touch")return;
    var r=stack.getBoundingClientRect();
    set(Math.max(0,Math.min(100,100*(event.clientX-r.left)/r.width)));
  });
  stack.addEventListener("dragstart",function(event){event.preventDefault()});
});
var pairs=Array.from(document.querySelectorAll(".pair")),buttons=Array.from(document.querySelectorAll("nav button"));
function show(at){
  if(!buttons.length)return;
  pairs.forEach(function(pair,i){pair.hidden=i!==at});
  buttons.forEach(function(button,i){button.setAttribute("aria-current",i===at?"true":"false")});
  current=at;
}
var current=0;
buttons.forEach(function(button,i){button.addEventListener("click",function(){show(i)})});
document.addEventListener("keydown",function(event){
  if(event.target.tagName==="INPUT")return;
  if(event.key==="ArrowRight")show(Math.min(pairs.length-1,current+1));
  if(event.key==="ArrowLeft")show(Math.max(0,current-1));
});
show(0);
"""
