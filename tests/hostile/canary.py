"""A canary for the browser: everything that a text which ran would leave behind."""

from typing import Any

HOST = "canary.example"
MARKER = "canary"
RAN = """() => window.canary !== undefined || Array.from({ length: window.length }, (_, i) => window[i]).some((one) => {
  try { return one.canary !== undefined; } catch { return false; }
})"""
FOREIGN = """() => [
  ...document.querySelectorAll('script, iframe, object, embed, img, base, link, meta[http-equiv=refresh], video, audio, form')
].filter((one) => /canary/i.test(one.outerHTML.slice(0, 500)) && !one.closest('style, script[src]')).map((one) => one.outerHTML.slice(0, 120))"""
HANDLERS = """() => [...document.querySelectorAll('*')].flatMap((one) => [...one.attributes])
  .filter((one) => /canary/i.test(one.value) && (/^on/i.test(one.name) || /^\\s*javascript:/i.test(one.value)))
  .map((one) => one.name + '=' + one.value)"""


class Canary:
    """Watches one page; `sung` holds what told of an execution."""

    def __init__(self, page: Any, own: str) -> None:
        """Listen to `page`; requests may go to `own` and nowhere else, and none leaves for another host."""
        self.page, self.own, self.sung = page, own, []
        page.on("dialog", self._dialog)
        page.on("console", lambda line: self._heard("console", line.text) if f"{MARKER} ran" in line.text else None)
        page.on("request", self._request)
        page.on("popup", lambda other: self._heard("popup", other.url))
        page.context.route(lambda url: HOST in url, lambda route: route.abort())

    def _heard(self, how: str, what: str) -> None:
        self.sung.append(f"{how}: {what[:200]}")

    def _dialog(self, dialog: Any) -> None:
        self._heard("dialog", dialog.message)
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.own, "data:", "blob:")):
            self._heard("request", request.url)

    def heard(self) -> list[str]:
        """Return every sign of an execution so far, foreign elements in the page included."""
        found = list(self.sung)
        if self.page.evaluate(RAN):
            found.append("window.canary is set")
        found += [f"element: {one}" for one in self.page.evaluate(FOREIGN)]
        return found + [f"attribute: {one}" for one in self.page.evaluate(HANDLERS)]
