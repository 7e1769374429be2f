// Puts what the server sends in the place of what the page shows.
"use strict";
const source = new EventSource("events");
source.onmessage = (event) => {
    document.querySelector("main").outerHTML = event.data;
    document.body.classList.remove("stale");
};
source.onerror = () => document.body.classList.add("stale");
