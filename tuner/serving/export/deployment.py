"""One engine with its deploy file, as whatever runs it sees it: name, image, command, devices, models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.config import EngineConfig

IMAGES = {
    "engine": "servetune:latest",
    "vllm": "vllm/vllm-openai:v0.32.0",
    "sglang": "lmsysorg/sglang:v0.5.20",
    "tensorrt-llm": "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27",
    "llamacpp": "ghcr.io/ggml-org/llama.cpp:server-cuda",
}
PORT = 8000
DRAIN_SECONDS = 45
"""In which running answers may end after SIGTERM. SGLang waits until the SIGKILL."""
STOP_SECONDS = 60
"""Until SIGKILL."""
START_SECONDS = 900
SHM_GIB = 2
"""/dev/shm, which torch and the engines' processes share; containers get 64 MiB of their own accord."""
CPUS, MEMORY = 4, "16Gi"
"""A start for what a scheduler reserves; not measured."""
CONFIG_DIRECTORY = "/etc/servetune"


@dataclass(frozen=True, slots=True)
class Deployment:
    """engine: whose deploy file `text` is, under the name `file`. image: None takes that of IMAGES. on_gpu: it was
    measured on one. replicas: servers that share the recorded traffic."""

    engine: str
    file: str
    text: str
    config: EngineConfig
    model_name: str
    fingerprint: str
    image: str | None = None
    on_gpu: bool = True
    replicas: int = 1

    @property
    def name(self) -> str:
        """A DNS label (RFC 1123) from the model's name."""
        label = re.sub(r"[^a-z0-9]+", "-", self.model_name.lower()).strip("-")[:40].strip("-")
        return f"servetune-{label or 'model'}"

    @property
    def run_image(self) -> str:
        return self.image or IMAGES[self.engine]

    @property
    def gpus(self) -> int:
        """Our own engine takes what it finds with device auto, and is given what it was measured with."""
        ours_on_cpu = self.engine == "engine" and self.config.device == "auto" and not self.on_gpu
        return 0 if self.config.device == "cpu" or ours_on_cpu else 1

    @property
    def models(self) -> list[str]:
        """Directories that the engine reads."""
        draft = [self.config.draft_model] if self.config.uses_draft_model and self.config.draft_model else []
        return [self.config.model, *draft]

    def command(self, directory: str, host: str = "0.0.0.0") -> list[str]:
        """argv that serves the deploy file in `directory`."""
        path, address = f"{directory}/{self.file}", ["--host", host, "--port", str(PORT)]
        drain = ["--drain-timeout", str(DRAIN_SECONDS)]
        return {
            "engine": ["python3", "-m", "engine", "--config", path, *address, *_beyond_loopback(host), *drain],
            "vllm": ["vllm", "serve", "--config", path, *address, "--shutdown-timeout", str(DRAIN_SECONDS)],
            "sglang": ["python3", "-m", "sglang.launch_server", "--config", path, *address],
            "tensorrt-llm": ["trtllm-serve", self.config.model, "--config", path, *address],
            "llamacpp": ["sh", path, *address],
        }[self.engine]

    @property
    def environment(self) -> dict[str, str]:
        return {"LLAMA_SERVER": "/app/llama-server"} if self.engine == "llamacpp" else {}


def _beyond_loopback(host: str) -> list[str]:
    return [] if host == "127.0.0.1" else ["--allow-remote"]
