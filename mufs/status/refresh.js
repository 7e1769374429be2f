// Puts what the server sends in the place of what the page shows; sorts tables by a column that is
// clicked; shows the values of a plot at the pointer.
"use strict";
const sorted = new Map(); // by the number of the table: its column, and 1 or -1
let pointer = null;

const source = new EventSource("events" + location.search);
source.onmessage = (event) => {
    document.querySelector("main").outerHTML = event.data;
    document.body.classList.remove("stale");
    decorate();
};
source.onerror = () => document.body.classList.add("stale");

function decorate() {
    document.querySelectorAll("table").forEach((table, number) => {
        for (const head of table.tHead.rows[0].cells) {
            head.setAttribute("role", "button");
            head.tabIndex = 0;
            head.onclick = () => choose(table, number, head.cellIndex);
            head.onkeydown = (event) => { if (event.key === "Enter") head.onclick(); };
        }
        sort(table, number);
    });
    hover();
}

function choose(table, number, column) {
    const [before, direction] = sorted.get(number) || [];
    // Numbers are wanted with the largest first, names from A to Z.
    const first = "order" in (table.tBodies[0].rows[0]?.cells[column]?.dataset || {}) ? -1 : 1;
    sorted.set(number, [column, before === column ? -direction : first]);
    sort(table, number);
}

function sort(table, number) {
    if (!sorted.has(number)) return;
    const [column, direction] = sorted.get(number);
    const cell = (row) => row.cells[column];
    const compare = (one, other) => "order" in one.dataset
        ? one.dataset.order - other.dataset.order
        : one.textContent.localeCompare(other.textContent, undefined, { numeric: true });
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => direction * compare(cell(one), cell(other)));
    table.tBodies[0].append(...rows);
    for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
    const chosen = table.tHead.rows[0].cells[column];
    chosen.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
}

document.addEventListener("pointermove", (event) => { pointer = event; hover(); });
document.addEventListener("pointerleave", () => { pointer = null; hover(); });

function hover() {
    for (const each of document.querySelectorAll("output")) each.textContent = "";
    const under = pointer && document.elementFromPoint(pointer.clientX, pointer.clientY);
    const plot = under && under.closest(".plot svg");
    if (!plot) return;
    const box = plot.getBoundingClientRect(), [, top, width, height] =
        plot.getAttribute("viewBox").split(" ").map(Number);
    const at = (pointer.clientX - box.left) / box.width * width, full = height + 2 * top;
    const values = [];
    let x = null;
    for (const line of ["line0", "line1", "line2"]) {
        const points = [...plot.querySelectorAll("polyline." + line)].flatMap((each) =>
            each.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)));
        if (!points.length) continue;
        const near = points.reduce((one, other) =>
            Math.abs(other[0] - at) < Math.abs(one[0] - at) ? other : one);
        if (Math.abs(near[0] - at) > width / 50) continue; // a gap
        x = near[0];
        const label = plot.closest("figure").querySelector(".key." + line);
        values.push((label ? label.parentNode.firstChild.nextSibling.data.trim() + " " : "") +
            text[plot.dataset.unit]((1 - near[1] / full) * plot.dataset.top));
    }
    if (!values.length) return;
    const shown = plot.nextElementSibling, ago = (1 - x / width) * plot.dataset.seconds;
    shown.textContent = `${duration(ago)} ago: ${values.join(", ")}`;
    const place = pointer.clientX - shown.parentNode.getBoundingClientRect().left;
    const room = shown.parentNode.clientWidth - shown.offsetWidth;
    shown.style.left = `${Math.max(0, Math.min(room, place - shown.offsetWidth / 2))}px`;
}

function duration(seconds) {
    if (seconds < 60) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const text = { // as in widgets.py
    bits: (value) => {
        for (const unit of ["bit/s", "kbit/s", "Mbit/s"]) {
            if (value < 1000) return `${Number(value.toPrecision(3))} ${unit}`;
            value /= 1000;
        }
        return `${Number(value.toPrecision(3))} Gbit/s`;
    },
    count: (value) => Math.round(value).toLocaleString("en"),
    percent: (value) => `${(100 * value).toFixed(1)}%`,
};

decorate();
