"""How the server is started: the flags that are about neither a model nor sampling."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from pydantic import field_validator

from modules.settings.addresses import Network, bare
from modules.settings.declare import Settings, setting


class ServerOptions(Settings):
    """What server.py can be told about itself."""

    # --- what to run
    model: str = setting("", group="Model")
    """The model to load at the start: a name from the models folder."""
    lora: tuple[str, ...] = setting((), group="Model")
    """LoRA adapters to load at the start: names from the adapters folder."""
    embedding_model: str = setting("", group="Model")
    """The model of /v1/embeddings: an encoder's folder in the models folder, loaded beside the other on first use; empty takes the other."""
    model_dir: str = setting("models", group="Model")
    """The folder with models."""
    lora_dir: str = setting("loras", group="Model")
    """The folder with LoRA adapters."""
    data_dir: str = setting("data", group="Model")
    """The folder for chats and what users set."""
    idle_timeout: float = setting(0.0, min=0, max=100_000, group="Model")
    """Unload the model after this many minutes without a request, and load it again for the next; 0 keeps it."""

    # --- where to listen
    listen: bool = setting(False, group="Network")
    """Answer other machines of the network too, not only this one."""
    listen_host: str = setting("", group="Network")
    """The address to listen on; empty is 127.0.0.1, or 0.0.0.0 with --listen."""
    listen_port: int = setting(7860, min=0, max=65_535, group="Network")
    """The port of the page and the API; 0 takes any that is free."""
    share: bool = setting(False, group="Network")
    """Make a public link through Gradio's tunnel, for the page and the API."""
    auto_launch: bool = setting(False, group="Network")
    """Open the page in the browser when it is ready."""
    ssl_keyfile: str = setting("", group="Network")
    """Private key file for https."""
    ssl_certfile: str = setting("", group="Network")
    """Certificate file for https."""
    root_path: str = setting("", group="Network", aliases=["subpath"])
    """The path under which a reverse proxy shows this server, such as /textloom; of a whole address the path counts."""
    trusted_proxies: tuple[str, ...] = setting((), group="Network", aliases=["forwarded_allow_ips"])
    """Addresses or networks of reverse proxies, such as 127.0.0.1 or 10.0.0.0/8, that are believed from where a request comes (X-Forwarded-For, X-Forwarded-Port); empty believes none."""
    nowebui: bool = setting(False, group="Network", aliases=["no_webui"])
    """Serve the API alone, without the page."""

    # --- who may come in
    gradio_auth: str = setting("", group="Access", secret=True)
    """Logins of the page: "user:password", several with commas."""
    gradio_auth_path: str = setting("", group="Access")
    """A file with such logins, one on each line."""
    admin_users: tuple[str, ...] = setting((), group="Access")
    """Who may change models and settings; the first login where this is empty."""
    api_key: str = setting("", group="Access", secret=True)
    """The key that API clients must send."""
    admin_key: str = setting("", group="Access", secret=True)
    """The key for the administration part of the API."""
    no_auth: bool = setting(False, group="Access")
    """Let anyone in who can reach the server, even on a public address."""

    # --- API
    api: bool = setting(False, group="API")
    """Serve the API of July 2023 too, on the two ports below."""
    api_blocking_port: int = setting(5000, min=1, max=65_535, group="API")
    """Port of the 2023 API."""
    api_streaming_port: int = setting(5005, min=1, max=65_535, group="API")
    """Port of the 2023 streaming API."""
    strict_api: bool = setting(False, group="API")
    """Refuse fields of a request that have no effect here, instead of naming them in the header x-textloom-ignored."""
    allow_remote_images: bool = setting(False, group="API")
    """Fetch images that requests name by an http address, from public addresses of the internet alone."""

    # --- the page
    chat: bool = setting(False, group="Page")
    """Open the page on the chat tab."""
    notebook: bool = setting(False, group="Page")
    """Open the page on the notebook tab."""
    settings: str = setting("settings.yaml", group="Page")
    """A file with defaults for any of these settings."""
    verbose: bool = setting(False, group="Page")
    """Log more, prompts included."""

    @field_validator("listen_host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return bare(host.strip())

    @field_validator("root_path")
    @classmethod
    def _path_alone(cls, path: str) -> str:
        return urlsplit(path).path if "://" in path else path

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            _network(proxy)
        return proxies

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        return tuple(_network(proxy) for proxy in self.trusted_proxies)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(bare(text), strict=False)
    except ValueError:
        raise ValueError(f"{text} is neither an IP address nor a network such as 10.0.0.0/8") from None
