"""A plain FastAPI server: threads for the codec, one thread for the network."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response

from tests.benchmarks.rival import Denoiser, read_options


def create_app(denoiser: Denoiser) -> FastAPI:
    app, network = FastAPI(), ThreadPoolExecutor(1)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/denoise")
    async def denoise(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        image, plane = await loop.run_in_executor(None, denoiser.decode, await request.body())
        restored = await loop.run_in_executor(network, denoiser.run, plane)
        return Response(await loop.run_in_executor(None, denoiser.encode, image, restored), media_type="image/png")

    return app


if __name__ == "__main__":
    options = read_options()
    app = create_app(Denoiser(options.repository, options.model))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)
