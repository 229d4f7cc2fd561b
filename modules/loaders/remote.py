"""Models on other engines: an address in models/NAME.yaml, or --base-url."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.library.model_spec import ModelSpec
from modules.library.remote_address import RemoteAddress, read_address
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.generation.remote.model import RemoteModel
    from modules.loaders.choose import Report


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if spec.format != "remote" and not options.base_url:
        return f"{spec.name} is on this machine: the loader remote needs an address. Set --base-url, or choose auto."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> RemoteModel:
    from modules.generation.remote.client import Client
    from modules.generation.remote.model import RemoteFacts, RemoteModel

    address = _address(spec, options)
    report(f"Asking {address.base_url}")
    client = Client(address.base_url, address.api_key)
    facts = RemoteFacts.ask(client, address.model)
    report(f"{facts.model} answers")
    length = options.ctx_size or address.context_length
    return RemoteModel(spec.name, client, facts, context_length=length, max_parallel=options.max_parallel)


def _address(spec: ModelSpec, options: LoadOptions) -> RemoteAddress:
    """What the file says, unless the options say something else."""
    if spec.format == "remote" and spec.path.is_file():
        written = read_address(spec.path)
    else:
        written = RemoteAddress(spec.endpoint or options.base_url, context_length=spec.context_length)
    return RemoteAddress(
        options.base_url or written.base_url,
        options.remote_model or written.model,
        options.remote_api_key or written.api_key,
        written.context_length,
    )
