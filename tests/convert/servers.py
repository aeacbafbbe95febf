"""Servers of files on this machine, over HTTP or TLS, which may misbehave."""

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import re
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

COMMIT = "c" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends ``server.files``, whole or a stretch, and does what ``server`` says besides.

    Attributes of the server:
      files: bytes by path.
      asked: lines of requests so far, with the first byte that was wanted.
      seen: the headers of each, by their names in small letters.
      cuts: after how many bytes each next body breaks off; empty: it does not.
      headers: that replace those of an answer; None as a value leaves one out.
      moved: where a path leads on to.
      commit: of the repositories that it shows.
      codes: what a path is answered with instead.
    """

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        stretch = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(stretch[1]) if stretch and server.ranges else 0
        server.asked.append(f"{self.command} {self.path} {start}".removesuffix(" 0"))
        server.seen.append({name.lower(): value for name, value in self.headers.items()})
        body = server.files.get(path)
        if path in server.moved:
            self.answer(302, b"", {"Location": server.moved[path], "X-Repo-Commit": server.commit})
        elif path in server.codes or body is None:
            self.answer(server.codes.get(path, 404), b"no", {})
        elif start and start >= len(body):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            headers = {
                "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Repo-Commit": server.commit,
            }
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.answer(206 if start else 200, body[start:], headers)

    def answer(self, code, body, headers):
        self.send_response(code)
        headers = {"Content-Length": str(len(body))} | headers | self.server.headers
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cuts.pop(0) if self.server.cuts and code < 300 else len(body)
            self.wfile.write(body[:cut])

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(context=None):
    """A server at ``server.url``; over TLS with a context."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.seen, server.cuts = {}, [], [], []
    server.headers, server.moved, server.codes, server.ranges = {}, {}, {}, True
    server.commit = COMMIT
    server.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def keep_repository(server, name, files, commit=COMMIT):
    """Has a server show the repository ``name`` as the hub does."""
    siblings, server.commit = [], commit
    for file, body in files.items():
        server.files[f"/{name}/resolve/main/{file}"] = body
        sha = hashlib.sha256(body).hexdigest()
        siblings.append({"rfilename": file, "size": len(body), "lfs": {"sha256": sha}})
        siblings[-1]["lfs"] |= {"size": len(body), "pointerSize": 130}
    about = {"_id": "1", "id": name, "sha": commit, "siblings": siblings}
    server.files[f"/api/models/{name}"] = json.dumps(about).encode()


def certificate(folder):
    """A server's context, and the file of the one certificate that it has for this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    both = folder / "both.pem"
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both.write_bytes(file.read_bytes() + key.private_bytes(serialization.Encoding.PEM, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, file
