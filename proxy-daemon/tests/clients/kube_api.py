"""Pods of a Kubernetes API server, as far as lists and watches go: kube_api.py HOST PORT CERT KEY TOKEN.

Standard input has a JSON object a line: a pod (its metadata) that is added or changed, or, with `gone`, goes. A line
`asked` prints how often it was asked for what. Prints `ready` once it accepts.
"""
import http.server
import json
import ssl
import sys
import threading
from urllib.parse import parse_qs, urlsplit

host, port, cert, key, token = sys.argv[1:]
changed = threading.Condition()
pods, history, asked = {}, [], {"list": 0, "watch": 0, "refused": 0}


def fits(pod, namespace, selector):
    if pod is None or (namespace and pod["namespace"] != namespace):
        return False
    labels = pod.get("labels", {})
    for part in filter(None, selector.split(",")):
        if "!=" in part:
            name, value = part.split("!=")
            if labels.get(name) == value:
                return False
        elif "=" in part:
            name, value = part.split("=")
            if labels.get(name) != value:
                return False
        elif part not in labels:
            return False
    return True


def change(pod):
    with changed:
        before = pods.get(pod["uid"])
        after = None if pod.pop("gone", False) else pod
        if after is None:
            pods.pop(pod["uid"], None)
        else:
            pods[pod["uid"]] = after
        history.append((before, after))
        (after or before)["resourceVersion"] = str(len(history))
        changed.notify_all()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        namespace = parts[3] if parts[2] == "namespaces" else None
        fine = parts[:2] == ["api", "v1"] and parts[-1] == "pods"
        fine = fine and query.get("fieldSelector") == "spec.nodeName=node-1"
        if self.headers["authorization"] != f"Bearer {token}" or not fine:
            asked["refused"] += 1
            self.send_response(403)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        selector = query.get("labelSelector", "")
        if "watch" in query:
            self.watch(namespace, selector, int(query["resourceVersion"]))
        else:
            asked["list"] += 1
            with changed:
                items = [{"metadata": pod} for pod in pods.values() if fits(pod, namespace, selector)]
                body = {"metadata": {"resourceVersion": str(len(history))}, "items": items}
            body = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def watch(self, namespace, selector, version):
        asked["watch"] += 1
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        while True:
            with changed:
                changed.wait_for(lambda: len(history) > version)
                before, after = history[version]
                version += 1
            was, does = fits(before, namespace, selector), fits(after, namespace, selector)
            kind = {(False, True): "ADDED", (True, True): "MODIFIED", (True, False): "DELETED"}.get((was, does))
            if kind:
                line = json.dumps({"type": kind, "object": {"metadata": after if does else before}}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer((host, int(port)), Handler, bind_and_activate=False)
server.daemon_threads = True
server.server_bind()
server.server_activate()
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "asked":
        print("asked", json.dumps(asked), flush=True)
    else:
        change(json.loads(line))
