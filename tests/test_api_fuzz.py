"""Whatever is asked of the documented API, it never fails by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from fake_engine import FakeBatchEngine
from hypothesis import HealthCheck, settings
from real_model import model_file, plan
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from localai import library
from localai.domain.embedding import Embedding
from localai.holding import VECTORS, Held, Holder
from localai.server.app import Counted, application
from localai.server.generating import Dispatcher
from localai.server.security import Rules


class FakeEmbedder:
    def cut(self, text: str) -> str:
        return text

    def embed(self, texts: list[str], **_: object) -> list[Embedding]:
        return [Embedding([0.5, 0.5], 1) for _ in texts]

    def close(self) -> None:
        pass


class FakeHolder(Holder):
    def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
        if kind == VECTORS:
            return Held(kind, found, plan(), None, embedder=FakeEmbedder())  # type: ignore[arg-type]
        return Held(kind, found, plan(), None, FakeBatchEngine(["a b"]))


def made() -> Counted:
    path = model_file()
    return application(Dispatcher(FakeHolder(), library.Found(None, path, "small")), Rules("testserver"))


def test_the_frameworks_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    app = made()._app._app  # type: ignore[attr-defined]
    assert not any(app._telemetry[name] for name in ("tracing", "metrics", "logs", "operation_spans", "auto_configure"))


schema = schemathesis.openapi.from_asgi("/openapi.json", made())


@schema.parametrize()
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_request_makes_it_fail(case: schemathesis.Case, isolated: Path) -> None:
    if isinstance(case.body, dict) and case.body.get("model") is not None:
        case.body["model"] = "small"  # else everything ends at a model that is not there
    checks = [not_a_server_error, status_code_conformance, content_type_conformance]
    case.validate_response(case.call(), checks=checks)
