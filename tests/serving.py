"""A real OpenAI-compatible server on loopback (`transformers serve`), and a proxy before it that spoils answers and remembers what it was asked."""

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`transformers serve` of a local folder, in a process of its own."""

    def __init__(self, folder, log, *flags):
        self.folder, self.log, self.flags, self.port, self.job = str(folder), Path(log), flags, free_port(), None
        self.start()

    def start(self):
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [Path(sys.executable).with_name("transformers"), "serve", self.folder, "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port), *self.flags]
        with open(self.log, "ab") as log:
            self.job = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        for _ in range(1200):
            assert self.job.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self):
        self.job.kill()
        self.job.wait()


class Proxy:
    """Passes chat completions on to a server; a share of them ends in 429, 500, half an answer or none in time.

    `seen` counts how often each prompt came in, `given` how often its answer went out whole.
    """

    def __init__(self, port, share=0.0, seed=0, late=1.0, reply=None, remember=True):
        self.port, self.share, self.late, self.reply, self.rng = port, share, late, reply, random.Random(seed)
        self.seen, self.given, self.fates, self.turn, self.most, self.now = Counter(), Counter(), Counter(), threading.Lock(), 0, 0
        self.times, self.paths, self.tokens = [], [], {}  # tokens: what the server said that a prompt's answer took
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                prompt = json.dumps(json.loads(body)["messages"])
                with outer.turn:
                    if remember:
                        outer.seen[prompt] += 1
                        outer.times.append(time.monotonic())
                        outer.paths.append(self.path)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    fate = outer.rng.choice(["429", "500", "cut", "late"]) if outer.rng.random() < outer.share else "pass"
                    outer.fates[fate] += 1
                try:
                    self.answer(fate, body, prompt)
                except OSError:  # the client is gone, or the server
                    self.close_connection = True
                finally:
                    with outer.turn:
                        outer.now -= 1

            def answer(self, fate, body, prompt):
                if fate in ("429", "500"):
                    return self.say(int(fate), b'{"error": {"message": "not now"}}', {"retry-after-ms": "20"})
                if fate == "late":
                    time.sleep(outer.late)
                    self.close_connection = True
                    return
                if outer.reply:
                    status, data = outer.reply(self.headers, json.loads(body))
                else:
                    up = http.client.HTTPConnection("127.0.0.1", outer.port, timeout=60)
                    up.request("POST", self.path, body, {"Content-Type": "application/json"})
                    back = up.getresponse()
                    status, data = back.status, back.read()
                    up.close()
                if fate == "cut":
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                with outer.turn:  # before it goes out: who has read it may look here at once
                    outer.given[prompt if remember else ""] += status == 200
                    if remember and not outer.reply and status == 200:
                        outer.tokens[prompt] = json.loads(data)["usage"]["total_tokens"]
                try:
                    self.say(status, data)
                except OSError:
                    with outer.turn:
                        outer.given[prompt if remember else ""] -= status == 200
                    raise

            def say(self, status, data, headers=()):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, *args):
                pass

        class Threads(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
