"""LitServe: one worker process, its defaults otherwise."""

# Without postponed annotations: LitServe reads them itself, and would find text.
from argparse import Namespace
from typing import Annotated

import litserve
from fastapi import Body, Response

from models.imaging.image import Image
from tests.benchmarks.rival import Array, Denoiser, read_options


class Api(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, options: Namespace) -> None:
        super().__init__(api_path="/denoise")
        self._options = options

    def setup(self, device: str) -> None:
        self._denoiser = Denoiser(self._options.repository, self._options.model)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> tuple[Image, Array]:
        return self._denoiser.decode(request)

    def predict(self, x: tuple[Image, Array]) -> tuple[Image, Array]:
        return x[0], self._denoiser.run(x[1])

    def encode_response(self, output: tuple[Image, Array]) -> Response:
        return Response(self._denoiser.encode(*output), media_type="image/png")


if __name__ == "__main__":
    options = read_options()
    server = litserve.LitServer(Api(options), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)
