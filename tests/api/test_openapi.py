"""/openapi.json says what the API does: golden-filed, and tried out by schemathesis."""

from __future__ import annotations

from collections import Counter

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
from tests.library.hub_server import running_hub
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
        assert "additionalProperties" not in schemas[name], "unknown fields are told, not refused"


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """The schema over a model that answers briefly, with a Hub that knows no model; loading and unloading change nothing."""
    app = make_app(tmp_path_factory.mktemp("schemathesis"), EchoModel(lambda request: "ok 好"), {})
    app.manager.unload = lambda *, stop_running=False: None  # type: ignore[method-assign]
    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.address)
        yield schemathesis.openapi.from_asgi("/openapi.json", build(app), headers=LOCAL)
    app.close()


LIMITS = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_server_or_its_promises(schema, mode):
    """Every operation of the schema: requests that fit it, and bodies that do not."""
    tried: Counter[str] = Counter()
    results = list(schema.get_all_operations())
    assert all(isinstance(result, Ok) for result in results)
    for operation in (result.ok() for result in results):
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue

        @LIMITS
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            tried[case.operation.label] += 1
            case.call_and_validate(headers=LOCAL, checks=CHECKS)

        check()
    assert len(tried) == (
        len(results) if mode == GenerationMode.POSITIVE else sum(bool(result.ok().body) for result in results)
    )
    assert sum(tried.values()) > 100


def test_no_row_of_requests_breaks_it_either(schema):
    """Stateful: what one operation answers goes into the next, along the links of the schema and those it implies."""
    machine = schema.as_state_machine()
    steps: Counter[str] = Counter()

    class Checked(machine):
        def get_call_kwargs(self, case):
            steps[case.operation.label] += 1
            return {"headers": LOCAL}

        def validate_response(self, response, case, **more):
            case.validate_response(response, checks=CHECKS)

    Checked.run(settings=settings(LIMITS, max_examples=12, stateful_step_count=6))
    assert len(steps) > 5 and sum(steps.values()) > 30
