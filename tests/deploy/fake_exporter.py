"""Serves every series of docs/metrics.md, with counters that grow: a cluster without a cluster."""

import http.server
import threading
import time

import metrics_doc

FREE = {
    "model": ["tiny", "unknown"],
    "worker": ["worker-0", "worker-1"],
    "rank": ["0", "1"],
    "version": ["0.1.0"],
    "revision": ["abc1234"],
}


def render(process, seconds):
    """The page that `process` would show after `seconds` of load."""
    free = {**FREE, "component": [process.removeprefix("loopserve-")]}
    if process != "loopserve-router":
        free["model"] = ["tiny"]
    lines = []
    for metric in metrics_doc.parse()[process].values():
        lines += [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {metric.type}"]
        for series in metric.series(free):
            labels = ",".join(f'{k}="{v}"' for k, v in series.items())
            if metric.type == "histogram":
                for le in ("0.1", "1", "10", "+Inf"):
                    inner = ",".join(filter(None, [labels, f'le="{le}"']))
                    lines.append(f"{metric.name}_bucket{{{inner}}} {int(seconds * 10)}")
                lines.append(f"{metric.name}_sum{{{labels}}} {seconds}")
                lines.append(f"{metric.name}_count{{{labels}}} {int(seconds * 10)}")
            else:
                value = seconds if metric.type == "counter" else 1
                lines.append(f"{metric.name}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"


class FakeCluster:
    """with FakeCluster() as c: c.metrics_targets -> {job: ["host:port"]}"""

    def __enter__(self):
        self._servers, self.metrics_targets = [], {}
        start = time.monotonic()
        for process in metrics_doc.PROCESSES:

            class Handler(http.server.BaseHTTPRequestHandler):
                page_of = process

                def do_GET(self):
                    page = render(self.page_of, time.monotonic() - start).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "text/plain; version=0.0.4")
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)

                def log_message(self, *_):
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._servers.append(server)
            self.metrics_targets[process] = [f"127.0.0.1:{server.server_port}"]
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()
