"""A stand-in for W&B's server, as much of it as a run asks for; W&B's own client and core talk to it."""

import http.server
import json
import threading
from typing import Any


class Server:
    """Takes runs until `go_away`; `lines` are the history lines that came, by step."""

    def __init__(self) -> None:
        self.lines: dict[int, dict[str, Any]] = {}
        self.runs: set[tuple[str, str]] = set()  # project and id
        heard = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
                reply = heard.graphql(body) if self.path == "/graphql" else heard.stream(body)
                data = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: Any) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def go_away(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        if "UpsertBucket" not in body["query"]:
            return {"errors": [{"message": "this server knows runs alone"}]}
        name = body["variables"]["name"]
        self.runs.add((body["variables"]["project"], name))
        project = {"id": "p", "name": body["variables"]["project"], "entity": {"id": "e", "name": "team"}}
        bucket = {
            "id": "b", "name": name, "displayName": name, "config": "{}", "historyLineCount": 0,
            "project": project,
        }  # fmt: skip
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}

    def stream(self, body: dict[str, Any]) -> dict[str, Any]:
        for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", ()):
            row = json.loads(line)
            self.lines[row["_step"]] = row
        return {}
