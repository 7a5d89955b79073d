"""Tells whoever asks that the event loop of a process of Dask turns."""

import dask
from tornado.web import RequestHandler

# Leads to other programs, whatever they are.
LEFT_OUT = "distributed.http.proxy"


class Healthz(RequestHandler):
    """Answers."""

    def get(self) -> None:
        """Answer."""
        self.write("ok\n")


# Dask looks for it.
routes = [("/healthz", Healthz, {})]


def with_health(setting: str) -> dict[str, list[str]]:
    """Give the setting that lists the pages of a process, with this one among them."""
    pages = [page for page in dask.config.get(setting) if page != LEFT_OUT]
    return {setting: [*pages, __name__]}
