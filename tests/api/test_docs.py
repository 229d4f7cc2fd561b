"""The examples of docs/api.md run as they stand there."""

from __future__ import annotations

import re

from tests.api.test_tools import TEMPLATE
from tests.conftest import ROOT
from tests.fakes import EchoModel

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_examples_run(serve, capsys):
    def reply(request):
        tools = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
        return tools if request.template_variables else "Because of scattering."

    server = serve(EchoModel(reply, chat_template=TEMPLATE))
    server.app.presets.save("Min-p", server.app.sampling)
    examples = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(examples.replace("http://127.0.0.1:7860", server.url), {})
    assert capsys.readouterr().out == 'Because of scattering.weather {"city": "Oslo"}\n'


def test_every_address_is_named():
    paths = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    for path in re.findall(r'"(/[a-z0-9_/{}-]+)": \{', paths):
        name = path.removeprefix("/v1/internal/").removesuffix("/{name}").replace("{number}", "ID").replace("{job}", "ID")
        assert name in PAGE, path
