// After the first visit the page works without a network: its files and the model are kept, and newer ones replace them.
const KEPT = "twinrun-1";
const FILES = ["./", "style.css", "app.js", "worker.js", "pixels.js", "draw.js", "lang/en.json", "lang/de.json", "lang/ko.json", "version", "regions",
  "selftest/photo.jpg", "selftest/pixels.png", "selftest/photo.webp"];

self.addEventListener("install", event => {
  self.skipWaiting();
  event.waitUntil(caches.open(KEPT).then(cache => Promise.allSettled(FILES.map(file => cache.add(file)))));
});
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));

// What never changes under its address is taken from here; anything else from the server, and from here where it is away.
self.addEventListener("fetch", event => {
  const { request } = event, { origin, pathname: path, search } = new URL(request.url);
  if (request.method !== "GET" || origin !== location.origin || search === "?now" || path === "/metrics" || path === "/health") return;
  event.respondWith(caches.open(KEPT).then(async cache => {
    const kept = await cache.match(path === "/" ? "./" : request, { ignoreVary: true });
    if (path.startsWith("/model/") && kept) return kept;
    try {
      const response = await fetch(request);
      if (response.ok && !path.startsWith("/model/")) await cache.put(request, response.clone()).catch(() => {}); // on a full disk
      return response;
    } catch (error) {
      if (kept) return kept;
      throw error;
    }
  }));
});
