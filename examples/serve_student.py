"""A student served over HTTP by diffusers, without pdfast in the serving process.

    python examples/serve_student.py export runs/photos/round-04-steps-0004 exported
    python examples/serve_student.py serve exported [--port 8000] [--host 0.0.0.0]

The second prints its address; GET /?num=4&seed=0 there gives a PNG grid of 4 pictures. It needs
torch, diffusers and Pillow alone, so the exported folder may be served on another machine. Others
reach it with --host 0.0.0.0; anyone who can reach the port may then ask for pictures.
"""

import argparse
import io
import json
import math
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

MAX_NUM = 64  # pictures of one answer
MAX_SEED = 2**63 - 1  # that a generator of torch takes


class RequestError(Exception):
    """A request that cannot be answered; the text says what to ask for instead."""


def export(model: str, folder: str) -> None:
    """Write a pdfast model as a DDIMPipeline; the only part that needs pdfast."""
    import pdfast

    try:
        pdfast.export(model, folder, to="diffusers")
    except pdfast.PdfastError as error:
        sys.exit(f"serve_student: {error}")


def asked(query: str) -> tuple[int, int]:
    """Number of pictures and seed of a query string; 4 and 0 if left out."""
    limits = {"num": (1, MAX_NUM), "seed": (0, MAX_SEED)}
    values = {"num": 4, "seed": 0}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in limits:
            raise RequestError(f"there is no parameter {name!r}: ask for /?num=4&seed=0")
        least, most = limits[name]
        # isdecimal alone takes other alphabets' digits; the length keeps int() quick.
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise RequestError(
                f"{name} must be a whole number, {least} to {most}, not {text[:20]!r}"
            )
        values[name] = int(text)
        if not least <= values[name] <= most:
            raise RequestError(f"{name} must be {least} to {most}, not {text}")
    return values["num"], values["seed"]


class Sampler:
    """An exported DDIMPipeline, called so that its steps are those of pdfast's sampler."""

    def __init__(self, folder: Path) -> None:
        """Read the folder. Raises ValueError with a sentence for one that cannot be served."""
        about = folder / "pdfast.json"
        if not about.is_file():
            raise ValueError(
                f"{folder} is no export to diffusers: make one by serve_student.py export"
            )
        from diffusers import DDIMPipeline

        # True needs the package accelerate, and saves nothing for so small a network.
        self.pipe = DDIMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
        if self.pipe.unet.config.num_class_embeds:
            raise ValueError(
                "the model has classes, and DDIMPipeline takes no labels: use the loop in "
                f"{folder / 'README.md'}"
            )
        # A teacher has no steps of its own. Numbers that divide the timesteps are sampled exactly.
        timesteps = self.pipe.scheduler.config.num_train_timesteps
        most = max(n for n in range(1, 65) if timesteps % n == 0)
        self.steps = json.loads(about.read_text())["steps"] or most
        self.pipe.set_progress_bar_config(disable=True)

    def grid(self, num: int, seed: int) -> bytes:
        """Return a PNG of `num` pictures in a nearly square grid."""
        import torch
        from PIL import Image

        pictures = self.pipe(
            batch_size=num,
            num_inference_steps=self.steps,
            use_clipped_model_output=True,  # pdfast clips x-hat, and takes eps-hat from that
            generator=torch.Generator().manual_seed(seed),
        ).images
        columns, (width, height) = math.ceil(math.sqrt(num)), pictures[0].size
        rows = math.ceil(num / columns)
        sheet = Image.new(pictures[0].mode, (columns * width, rows * height))
        for k, picture in enumerate(pictures):
            sheet.paste(picture, (k % columns * width, k // columns * height))
        png = io.BytesIO()
        sheet.save(png, "png")
        return png.getvalue()


def server(folder: Path, port: int, host: str = "127.0.0.1") -> HTTPServer:
    """A server, by default for this machine alone; port 0: any free one.

    It answers one request after another, since a pipeline's scheduler keeps the state of the
    sampling that it is in.
    """
    sampler = Sampler(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            url = urlsplit(self.path)
            if url.path != "/":
                self.answer(HTTPStatus.NOT_FOUND, b"ask for /?num=4&seed=0\n", "text/plain")
                return
            try:
                num, seed = asked(url.query)
            except RequestError as error:
                self.answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode(), "text/plain")
                return
            self.answer(HTTPStatus.OK, sampler.grid(num, seed), "image/png")

        def answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer((host, port), Handler)


def main() -> None:
    """Run the subcommand of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write a pdfast model for diffusers")
    exporting.add_argument("model", help="model directory, as runs/photos/round-04-steps-0004")
    exporting.add_argument("folder", help="a new folder")
    serving = commands.add_parser("serve", help="serve pictures of what was exported")
    serving.add_argument("folder", type=Path, help="what export wrote")
    serving.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    serving.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on; 0.0.0.0: for other machines, too (default: 127.0.0.1, this one)",
    )
    args = parser.parse_args()
    if args.command == "export":
        export(args.model, args.folder)
        return
    try:
        served = server(args.folder, args.port, args.host)
    except (ValueError, OSError, OverflowError) as error:
        sys.exit(f"serve_student: {error}")
    host, port = served.server_address[:2]
    print(f"serving on http://{host}:{port}/?num=4&seed=0 (Ctrl-C ends it)", flush=True)
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        served.server_close()


if __name__ == "__main__":
    main()
