# SPDX-License-Identifier: Apache-2.0
"""The benchmark images as data: build, start, and readiness of each.

Owns the tables `IMAGES` and `LARGE_IMAGES`, and nothing that runs. Invariant: a recipe decides the
whole content of its image except package versions, which float with Debian's archive and PyPI; the
cache records them.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.images.ready import Answers, Prints, Ready

SUITE = "bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layer:
    """One layer: the changes of a shell script in the root directory.

    Args:
        script: run with ``sh -eu``.
        inside: run in the image (chroot), otherwise on the host with the root directory in
        ``$ROOT``.
    """

    script: str
    inside: bool = True


@dataclass(frozen=True)
class Recipe:
    """One image.

    Args:
        purpose: the reason for it.
        layers: in order, on top of the layers of `base`.
        command: ``Cmd`` of the image.
        ready: the sign that the command works.
        base: name of the single-layer image that it starts from.
        user: ``User`` of the image, empty for root.
        workdir: ``WorkingDir`` of the image.
        env: further environment beside ``PATH``.
    """

    purpose: str
    layers: tuple[Layer, ...]
    command: tuple[str, ...]
    ready: Ready
    base: str | None = "debian"
    user: str = ""
    workdir: str = "/"
    env: tuple[str, ...] = ()


def apt(*packages: str) -> Layer:
    """Return a layer with Debian packages."""
    names = " ".join(packages)
    return Layer(f"apt-get -q update\napt-get -qy install --no-install-recommends {names}")


def pip(*requirements: str) -> Layer:
    """Return a layer with PyPI wheels, compiled to bytecode as pip does it."""
    names = " ".join(requirements)
    return Layer(
        "python3 -m pip install --break-system-packages --no-cache-dir --root-user-action=ignore"
        f" --only-binary=:all: --quiet {names}"
    )


# As in the usual base images, the script empties debootstrap's traces of this machine and of the
# download, and policy-rc.d keeps packages from starting their services.
DEBOOTSTRAP = f"""\
debootstrap --variant=minbase {SUITE} "$ROOT" "$MIRROR"
rm -rf "$ROOT"/var/lib/apt/lists/* "$ROOT"/var/cache/apt/*.bin "$ROOT"/var/cache/apt/archives/*.deb
: > "$ROOT/etc/resolv.conf"
: > "$ROOT/etc/hostname"
: > "$ROOT/etc/machine-id"
printf '#!/bin/sh\\nexit 101\\n' > "$ROOT/usr/sbin/policy-rc.d"
chmod 755 "$ROOT/usr/sbin/policy-rc.d"
"""

BUSYBOX = """\
cd "$SCRATCH"
apt-get -q download busybox-static
mkdir -p "$ROOT/bin" "$ROOT/etc" "$ROOT/proc" "$ROOT/sys" "$ROOT/dev" "$ROOT/root" \
    "$ROOT/var/lib/dpkg"
mkdir -m 1777 "$ROOT/tmp"
dpkg-deb --extract busybox-static_*.deb "$ROOT"
{ dpkg-deb --field busybox-static_*.deb; echo 'Status: install ok installed'; echo; } \
    > "$ROOT/var/lib/dpkg/status"
for applet in $("$ROOT/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$ROOT/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' > "$ROOT/etc/passwd"
echo 'root:x:0:' > "$ROOT/etc/group"
"""

NODE_SERVER = """\
useradd --create-home --uid 1000 node
mkdir /app
cat > /app/server.js <<'END'
const express = require('express');
const app = express();
app.get('/', (request, response) => response.send('hello\\n'));
app.listen(8080, '127.0.0.1');
END
chown -R node:node /app
"""

JAVA_SERVER = """\
mkdir /app
cat > /app/Main.java <<'END'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Main {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8081), 0);
        server.createContext("/", exchange -> {
            byte[] body = "hello\\n".getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
END
javac -d /app /app/Main.java
"""

# The deleted and recreated directory becomes an opaque one, the site a whiteout.
NGINX_SITE = """\
rm -rf /var/www/html
mkdir /var/www/html
echo hello > /var/www/html/index.html
rm /etc/nginx/sites-enabled/default
cat > /etc/nginx/conf.d/site.conf <<'END'
server {
    listen 127.0.0.1:8082;
    root /var/www/html;
}
END
ln -sf /dev/stdout /var/log/nginx/access.log
ln -sf /dev/stderr /var/log/nginx/error.log
"""

CXX_PROGRAM = """\
mkdir /work
cat > /work/hello.cc <<'END'
#include <iostream>
#include <map>
#include <regex>
#include <string>

int main() {
    std::map<std::string, int> words{{"hello, world", 1}};
    for (const auto &word : words)
        if (std::regex_match(word.first, std::regex("h.*d")))
            std::cout << word.first << std::endl;
}
END
"""

POSTGRES_RUN = """\
install -d -o postgres -g postgres -m 2775 /run/postgresql
"""

# A gigabyte of weights of a model that nobody has trained: the seed decides them. The server
# reads all of them, and as much of torch as a prediction on the CPU needs.
MODEL_WEIGHTS = """\
python3 - <<'END'
import torch
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(11)
config = BertConfig(
    hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, intermediate_size=4096
)
BertForSequenceClassification(config).save_pretrained("/model")
END
"""
MODEL_SERVER = """\
import fastapi, torch, uvicorn
from transformers import BertForSequenceClassification

model = BertForSequenceClassification.from_pretrained("/model").eval()
tokens = torch.arange(16)[None]
app = fastapi.FastAPI()


@app.get("/")
def predict():
    with torch.inference_mode():
        return model(input_ids=tokens).logits.tolist()
"""
SMALL_WEIGHTS = """\
mkdir /model
python3 - <<'END'
import numpy, safetensors.numpy

weights = numpy.random.default_rng(11).standard_normal((2, 1024, 1024), numpy.float32)
safetensors.numpy.save_file({"weights": weights}, "/model/model.safetensors")
END
"""
SMALL_SERVER = """\
import fastapi, numpy, safetensors.numpy, uvicorn

weights = safetensors.numpy.load_file("/model/model.safetensors")["weights"]
app = fastapi.FastAPI()


@app.get("/")
def predict():
    return float((weights[0] @ weights[1]).trace())
"""


def serving(
    purpose: str, packages: tuple[str, ...], weights: str, server: str, port: int
) -> Recipe:
    """Return an image that serves predictions of a model: packages, weights, and the server."""
    run = f'uvicorn.run(app, host="127.0.0.1", port={port}, log_level="error")'
    return Recipe(
        purpose=purpose,
        layers=(
            apt("python3", "python3-pip", "ca-certificates"),
            pip(*packages),
            Layer(weights),
            Layer(f"mkdir /app\ncat > /app/server.py <<'END'\n{server}\n\n{run}\nEND\n"),
        ),
        command=("python3", "/app/server.py"),
        ready=Answers(port, HTTP_GET, b"HTTP/1.1 200 OK"),
        env=("PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1"),
    )


HTTP_GET = b"GET / HTTP/1.0\r\n\r\n"
POSTGRES_PARAMETERS = b"user\0postgres\0database\0postgres\0\0"
# StartupMessage, protocol 3.0. "R" (authentication) is the answer of a running server; a
# starting one says "E".
POSTGRES_STARTUP = (
    (8 + len(POSTGRES_PARAMETERS)).to_bytes(4, "big")
    + (196608).to_bytes(4, "big")
    + POSTGRES_PARAMETERS
)

IMAGES: dict[str, Recipe] = {
    "small": Recipe(
        purpose="a static busybox: what an image costs that has nothing in it",
        layers=(Layer(BUSYBOX, inside=False),),
        base=None,
        command=("sh", "-c", "echo ready"),
        ready=Prints("ready"),
    ),
    "debian": Recipe(
        purpose="minimal Debian, the base of the others; used by the tests",
        layers=(Layer(DEBOOTSTRAP, inside=False),),
        base=None,
        command=("sh", "-c", "echo ready"),
        ready=Prints("ready"),
    ),
    "python": Recipe(
        purpose="python3 with a large set of wheels, of which a start reads little",
        layers=(
            apt("python3", "python3-pip", "ca-certificates"),
            pip("numpy", "scipy", "pandas"),
            pip(
                *("scikit-learn", "matplotlib", "statsmodels", "scikit-image", "sympy"),
                *("pyarrow", "polars", "duckdb", "numba", "onnxruntime"),
                *("opencv-python-headless", "sqlalchemy", "fastapi", "uvicorn", "jupyterlab"),
            ),
        ),
        command=("python3", "-c", "import numpy, scipy.linalg, pandas; print('ready')"),
        ready=Prints("ready"),
        env=("PYTHONDONTWRITEBYTECODE=1",),
    ),
    "manyfiles": Recipe(
        purpose="200,000 small files: metadata rather than data",
        layers=(
            Layer('"$PYTHON" -m benchmarks.images.manyfiles "$ROOT/data" 200000 2', inside=False),
        ),
        base="small",
        command=("sh", "-c", "find /data -type f | wc -l"),
        ready=Prints("200000"),
    ),
    "redis": Recipe(
        purpose="a server that reads little to start",
        layers=(apt("redis-server"), Layer("rm /etc/redis/redis.conf")),
        command=("redis-server", "--save", "", "--port", "6379", "--bind", "127.0.0.1"),
        ready=Answers(6379, b"PING\r\n", b"+PONG"),
        user="redis",
        workdir="/var/lib/redis",
    ),
    "nginx": Recipe(
        purpose="a server with a master and workers; has whiteouts",
        layers=(apt("nginx"), Layer(NGINX_SITE)),
        command=("nginx", "-g", "daemon off;"),
        ready=Answers(8082, HTTP_GET, b"HTTP/1.1 200 OK"),
    ),
    "postgresql": Recipe(
        purpose="a database that opens a cluster which lies in the image",
        layers=(apt("locales", "tzdata"), apt("postgresql"), Layer(POSTGRES_RUN)),
        command=(
            "/usr/lib/postgresql/15/bin/postgres",
            *("-D", "/var/lib/postgresql/15/main"),
            *("-c", "config_file=/etc/postgresql/15/main/postgresql.conf"),
        ),
        ready=Answers(5432, POSTGRES_STARTUP, b"R"),
        user="postgres",
    ),
    "nodejs": Recipe(
        purpose="node with npm and express: many small modules",
        layers=(apt("nodejs", "npm"), apt("node-express"), Layer(NODE_SERVER)),
        command=("node", "server.js"),
        ready=Answers(8080, HTTP_GET, b"HTTP/1.1 200 OK"),
        user="node",
        workdir="/app",
        env=("NODE_ENV=production",),
    ),
    "openjdk": Recipe(
        purpose="a Java server: one large module file, read in places",
        layers=(
            apt("ca-certificates", "fontconfig"),
            apt("openjdk-17-jdk-headless"),
            Layer(JAVA_SERVER),
        ),
        command=("java", "-cp", "/app", "Main"),
        ready=Answers(8081, HTTP_GET, b"HTTP/1.1 200 OK"),
        env=("LANG=C.UTF-8",),
    ),
    "gcc": Recipe(
        purpose="compiles and runs a C++ program: few large executables, many headers",
        layers=(apt("gcc", "libc6-dev", "make"), apt("g++", "gfortran", "git"), Layer(CXX_PROGRAM)),
        command=("sh", "-c", "g++ -O1 -o /tmp/hello hello.cc && /tmp/hello"),
        ready=Prints("hello, world"),
        workdir="/work",
    ),
}

LARGE_IMAGES: dict[str, Recipe] = {
    "model": serving(
        "serves a model: torch with its CUDA wheels, and a gigabyte of weights that a start reads",
        ("torch", "transformers", "safetensors", "fastapi", "uvicorn"),
        MODEL_WEIGHTS,
        MODEL_SERVER,
        8083,
    ),
    "model-small": serving(
        "the same without torch, and with 8 MB of weights: to try the recipe and the suite",
        ("numpy", "safetensors", "fastapi", "uvicorn"),
        SMALL_WEIGHTS,
        SMALL_SERVER,
        8084,
    ),
}
"""Built only when somebody names them: the first takes half an hour, and 20 GB meanwhile."""

RECIPES = IMAGES | LARGE_IMAGES
