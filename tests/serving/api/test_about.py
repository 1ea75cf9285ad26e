"""/health, /metrics, the page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from linmu.formats.bundle import open_bundle
from tests.serving.api.servers import NAME, conversation


def samples(server) -> dict[tuple, float]:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    found = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in found}


def test_health_says_what_the_model_can_do(vision, text, bundle_of):
    for server, family in ((vision, "smolvlm"), (text, "llama")):
        health = server.http.get("/health").json()
        manifest = open_bundle(bundle_of(family)).manifest
        assert health["status"] == "ok" and health["model"] == NAME and health["family"] == family
        assert health["state_bytes"] == manifest.state_bytes and health["backend"] == "onnxruntime"
        assert health["capabilities"]["images"] is health["capabilities"]["videos"] is (family == "smolvlm")
        assert health["sessions"]["most"] == 4


def test_metrics_count_what_was_done(text):
    before = samples(text)
    used = text.chat("count me", max_completion_tokens=5).usage
    text.error(conversation(surplus=1))
    text.http.get("/no/such/path")
    after = samples(text)

    def grown(name: str, **labels: str) -> float:
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0)

    assert grown("linmu_prompt_tokens_total") == used.prompt_tokens
    assert grown("linmu_completion_tokens_total") == used.completion_tokens
    assert grown("linmu_requests_total", outcome="finished") == 1
    assert grown("linmu_first_token_seconds_count") == 1
    assert grown("linmu_step_seconds_count") == grown("linmu_step_rows_sum") == used.completion_tokens - 1
    path = "/v1/chat/completions"
    assert grown("linmu_http_responses_total", path=path, status="200") == 1
    assert grown("linmu_http_responses_total", path=path, status="400") == 1
    assert grown("linmu_http_responses_total", path="other", status="404") == 1


def test_the_page_needs_no_other_host(text):
    response = text.http.get("/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "http://" not in response.text and "https://" not in response.text
