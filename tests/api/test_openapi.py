"""/openapi.json says what the API does: golden-filed, and tried out by schemathesis."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from modules.generation.sampling import SamplingParams
from modules.web import build
from tests.api.conftest import make_app
from tests.fakes import EchoModel
from tools import openapi as golden

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

LOCAL = {"Host": "localhost"}


def test_the_golden_file_is_current():
    assert golden.PAGE.read_text(encoding="utf-8") == golden.current(), "run: python -m tools.openapi"


def test_every_sampling_setting_is_a_field_with_its_bounds(tmp_path):
    app = make_app(tmp_path, None, {})
    schemas = build(app).openapi()["components"]["schemas"]
    app.close()
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        assert set(SamplingParams.model_fields) <= set(fields)
        assert (fields["top_p"]["minimum"], fields["top_p"]["maximum"]) == (0, 1)
        assert fields["min_p"]["description"].startswith("Drop tokens less likely")
        assert schemas[name]["additionalProperties"] is False


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LEFT_OUT = ("/model/load", "/model/unload", "/adapters/load", "/download", "/training/jobs", "/metrics")
"""What would change the server for the others, and what has no schema."""


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Every operation of the schema, over a model that answers briefly."""
    app = make_app(tmp_path_factory.mktemp("schemathesis"), EchoModel(lambda request: "ok 好"), {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", build(app), headers=LOCAL)
    results = list(schema.get_all_operations())
    assert all(isinstance(result, Ok) for result in results)
    yield [result.ok() for result in results if isinstance(result, Ok)]
    app.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_server_or_its_promises(operations, mode):
    tried = 0
    for operation in operations:
        if operation.path.endswith(LEFT_OUT) or (mode == GenerationMode.NEGATIVE and not operation.body):
            continue
        cases = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        @given(cases)
        def check(case):
            nonlocal tried
            tried += 1
            case.call_and_validate(headers=LOCAL, checks=CHECKS)

        check()
    assert tried > 100
