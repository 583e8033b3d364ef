"""The merge request's note, against a server on loopback that behaves as GitLab's API does."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operations import gitlab as subject
from operations.gitlab import GitLabError, ReviewedPlan, publish, reviewed_plan
from tests.unit.gitlab_api import HEAD, ME, MERGE, MERGE_REQUEST, PROJECT, SOMEBODY, TOKEN, Answer, Server, serving
from tests.unit.pipeline_project import proxmox_in

pytestmark = pytest.mark.unit

MARKER = "<!-- school-postgres preview -->"
DIGEST = "c" * 64


@pytest.fixture
def gitlab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A GitLab, and the environment of a job in the pipeline of its merge request."""
    with serving(Server()) as server:
        variables = {
            "CI_API_V4_URL": f"{server.address}/api/v4",
            "CI_PROJECT_ID": PROJECT,
            "CI_MERGE_REQUEST_IID": MERGE_REQUEST,
            "CI_COMMIT_SHA": HEAD,
            "SCHOOL_GITLAB_TOKEN": TOKEN,
        }
        for name in ("CI_SERVER_TLS_CA_FILE", "SCHOOL_PLAN_DIGEST", "CI_MERGE_REQUEST_SOURCE_BRANCH_SHA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(subject, "PAUSES", (0.01, 0.01, 0.01))
        yield server


def failure(act: Callable[[], object] = lambda: publish(MARKER, MARKER)) -> str:
    """The sentence with which publishing fails; it has the form of one, and no secret in it."""
    with pytest.raises(GitLabError) as caught:
        act()
    sentence = str(caught.value)
    assert TOKEN not in sentence
    assert re.fullmatch(r"[A-Z][^\n]+\.", sentence), sentence
    # A traceback would show what the HTTP library was doing, headers included.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return sentence


# ------------------------------------------------------------------ one note


def test_the_first_run_writes_a_note_and_returns_its_address(gitlab: Server) -> None:
    address = publish(f"{MARKER}\nOne machine gets more memory.", MARKER)
    assert [note["body"] for note in gitlab.notes] == [f"{MARKER}\nOne machine gets more memory."]
    assert address == f"{gitlab.address}/school/postgres/-/merge_requests/5#note_1000"


def test_a_second_run_brings_the_note_up_to_date_and_writes_no_other(gitlab: Server) -> None:
    first = publish(f"{MARKER}\nOne machine.", MARKER)
    second = publish(f"{MARKER}\nTwo machines.", MARKER)
    assert second == first
    assert [note["body"] for note in gitlab.notes] == [f"{MARKER}\nTwo machines."]
    assert gitlab.count("POST") == 1


def test_the_own_note_is_found_behind_a_full_page_of_others(gitlab: Server) -> None:
    for number in range(130):
        gitlab.add(f"remark {number}", SOMEBODY)
    own = gitlab.add(f"{MARKER}\nold", ME)
    address = publish(f"{MARKER}\nnew", MARKER)
    assert address.endswith(f"#note_{own['id']}")
    assert own["body"] == f"{MARKER}\nnew"
    assert len(gitlab.notes) == 131


def test_a_note_of_somebody_else_with_the_marker_is_left_alone(gitlab: Server) -> None:
    foreign = gitlab.add(f"> {MARKER}\nlook at this", SOMEBODY)
    publish(f"{MARKER}\nmine", MARKER)
    assert foreign["body"] == f"> {MARKER}\nlook at this"
    assert [note["body"] for note in gitlab.notes if note["author"]["id"] == ME] == [f"{MARKER}\nmine"]


def test_another_note_of_the_same_user_is_left_alone(gitlab: Server) -> None:
    other = gitlab.add("something else", ME)
    publish(f"{MARKER}\nmine", MARKER)
    assert other["body"] == "something else"
    assert len(gitlab.notes) == 2


def test_a_body_without_the_marker_gets_it_so_that_it_is_found_again(gitlab: Server) -> None:
    publish("one", MARKER)
    publish("two", MARKER)
    assert [note["body"] for note in gitlab.notes] == [f"{MARKER}\ntwo"]


# ------------------------------------------------------------------ what passes


def test_too_many_requests_are_waited_for_as_long_as_gitlab_says(gitlab: Server) -> None:
    gitlab.instead = [("POST", Answer(429, headers={"Retry-After": "1"}))]
    began = time.monotonic()
    publish(MARKER, MARKER)
    assert time.monotonic() - began >= 1
    assert len(gitlab.notes) == 1
    assert gitlab.count("POST") == 2


def test_a_wait_without_end_is_cut_short(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LONGEST_WAIT_SECONDS", 1)
    gitlab.instead = [("GET", Answer(429, headers={"Retry-After": "86400"}))]
    began = time.monotonic()
    publish(MARKER, MARKER)
    assert time.monotonic() - began < 60
    assert len(gitlab.notes) == 1


def test_too_many_requests_for_ever_is_a_sentence(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LONGEST_WAIT_SECONDS", 0)
    gitlab.always = Answer(429, headers={"Retry-After": "5"})
    assert "goes on saying that there are too many requests (429); run the job again later" in failure()
    assert len(gitlab.requests) == subject.WAITS + 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_failing_gitlab_is_asked_again(gitlab: Server, method: str, status: int) -> None:
    gitlab.instead = [(method, Answer(status, body={"message": "busy"}))]
    publish(MARKER, MARKER)
    assert len(gitlab.notes) == 1


def test_a_note_that_was_written_although_the_answer_was_an_error_is_not_written_twice(gitlab: Server) -> None:
    gitlab.instead = [("POST", Answer(502, after=True))]
    publish(f"{MARKER}\ntext", MARKER)
    assert [note["body"] for note in gitlab.notes] == [f"{MARKER}\ntext"]


def test_a_gitlab_that_fails_for_ever_is_given_up(gitlab: Server) -> None:
    gitlab.always = Answer(503)
    assert "The note of merge request !5 was not written: " in (sentence := failure())
    assert "fails itself (503) (tried 4 times); run the job again when it works" in sentence
    assert len(gitlab.requests) == 4


# ------------------------------------------------------------------ what does not pass


def test_a_wrong_token_is_named_but_not_shown(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHOOL_GITLAB_TOKEN", "glpat-of-last-year")
    sentence = failure()
    assert "does not know the token (401)" in sentence
    assert "put it into SCHOOL_GITLAB_TOKEN" in sentence
    assert "glpat" not in sentence
    assert len(gitlab.requests) == 1


def test_missing_rights_say_which_are_needed(gitlab: Server) -> None:
    gitlab.instead = [("POST", Answer(403, body={"message": "403 Forbidden"}))]
    assert "the scope api and the role Reporter" in failure()


def test_an_unknown_merge_request_is_a_sentence(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_MERGE_REQUEST_IID", "6")
    sentence = failure()
    assert "!6 was not written" in sentence
    assert "no such thing in project 42 to this token (404)" in sentence
    assert gitlab.notes == []


def test_a_refusal_is_quoted_without_the_token_and_only_its_beginning(gitlab: Server) -> None:
    gitlab.instead = [("POST", Answer(400, body={"message": f"note is too long\nseen: {TOKEN} " + "x" * 5000}))]
    sentence = failure()
    assert "(400: note is too long seen: *** xxx" in sentence
    assert len(sentence) < 500


def test_an_answer_that_is_no_json_is_a_sentence(gitlab: Server) -> None:
    gitlab.instead = [("GET", Answer(200, body="welcome", headers={"Content-Type": "text/html"}))]
    assert "an answer that cannot be understood; look at what answers at CI_API_V4_URL" in failure()


def test_the_token_is_not_carried_to_another_server(gitlab: Server) -> None:
    with serving(Server()) as other:
        gitlab.instead = [("GET", Answer(302, headers={"Location": f"{other.address}/api/v4/user"}))]
        assert "sends the request on to another address" in failure()
    assert other.requests == []


def test_a_refused_connection_is_a_sentence(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("CI_API_V4_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/api/v4")
        sentence = failure()
    assert "cannot be reached: Connection refused (tried 4 times); check the way from the runner to GitLab" in sentence


def test_a_gitlab_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch, gitlab: Server) -> None:
    monkeypatch.setattr(subject, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("CI_API_V4_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api/v4")
        assert "does not answer within 0.2 s (tried 4 times)" in failure()


def test_a_certificate_that_is_not_trusted_is_a_sentence_and_its_authority_can_be_given(
    gitlab: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxmox_in(tmp_path) as address:
        monkeypatch.setenv("CI_API_V4_URL", f"{address}api/v4")
        assert "shows a certificate that is not trusted; give the runner the authority" in failure()
        monkeypatch.setenv("CI_SERVER_TLS_CA_FILE", str(tmp_path / "proxmox.pem"))
        assert "does not know the token (401)" in failure()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SCHOOL_GITLAB_TOKEN", "", "the variable SCHOOL_GITLAB_TOKEN is empty"),
        ("SCHOOL_GITLAB_TOKEN", f"{TOKEN}\n", "SCHOOL_GITLAB_TOKEN contains a blank, a line break"),
        ("CI_API_V4_URL", "", "the variable CI_API_V4_URL is empty; run this in a job of GitLab"),
        ("CI_PROJECT_ID", "", "the variable CI_PROJECT_ID is empty"),
        ("CI_API_V4_URL", "http://127.0.0.1/", "not an address that ends with /api/v4"),
        ("CI_MERGE_REQUEST_IID", "", "There is no merge request to comment on"),
        ("CI_SERVER_TLS_CA_FILE", "/nowhere/ca.crt", "there is no file /nowhere/ca.crt"),
        ("CI_SERVER_TLS_CA_FILE", "", ""),
    ],
)
def test_the_environment_is_checked_before_anything_is_sent(
    gitlab: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    if not said:
        publish(MARKER, MARKER)
        return
    assert said in failure()
    assert gitlab.requests == []


def test_settings_do_not_show_the_token_when_they_are_printed(gitlab: Server) -> None:
    settings = subject.GitLabSettings.from_environment(
        {"CI_API_V4_URL": f"{gitlab.address}/api/v4", "CI_PROJECT_ID": PROJECT, "SCHOOL_GITLAB_TOKEN": TOKEN}
    )
    assert TOKEN not in repr(settings)


# ------------------------------------------------------------------ the plan that was reviewed


def merged(**more: Any) -> dict[str, Any]:
    return {"iid": 5, "state": "merged", "target_branch": "main", "sha": HEAD, "merge_commit_sha": MERGE, **more}


@pytest.fixture
def shown(gitlab: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A merge request that showed a plan and was merged."""
    monkeypatch.setenv("SCHOOL_PLAN_DIGEST", DIGEST)
    publish(f"{MARKER}\nOne machine gets more memory.", MARKER)
    gitlab.merge_requests = [merged()]
    return gitlab


def test_the_plan_of_a_merge_request_is_known_after_merging(shown: Server) -> None:
    assert DIGEST in shown.notes[0]["body"]
    assert reviewed_plan(MERGE, "main") == ReviewedPlan(merge_request="!5", digest=DIGEST)


def test_a_squashed_merge_request_is_found_too(shown: Server) -> None:
    shown.merge_requests = [merged(merge_commit_sha=None, squash_commit_sha=MERGE)]
    assert reviewed_plan(MERGE, "main").merge_request == "!5"


def test_a_failed_preview_takes_the_plan_out_of_the_note(shown: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCHOOL_PLAN_DIGEST")
    publish(f"{MARKER}\nThe preview failed.", MARKER)
    assert "shows no plan: its last preview failed" in failure(lambda: reviewed_plan(MERGE, "main"))


def test_a_plan_that_somebody_else_wrote_down_does_not_count(gitlab: Server) -> None:
    gitlab.add(f"<!-- school-postgres plan {DIGEST} of {HEAD} -->", SOMEBODY)
    gitlab.merge_requests = [merged()]
    assert "shows no plan" in failure(lambda: reviewed_plan(MERGE, "main"))


def test_a_plan_of_an_older_commit_does_not_count(gitlab: Server) -> None:
    gitlab.add(f"<!-- school-postgres plan {DIGEST} of {'d' * 40} -->", ME)
    gitlab.merge_requests = [merged()]
    assert "is of commit dddddddd, but aaaaaaaa was merged" in failure(lambda: reviewed_plan(MERGE, "main"))


@pytest.mark.parametrize(
    "found",
    [[], [merged(state="opened")], [merged(target_branch="try")], [merged(merge_commit_sha="e" * 40)]],
    ids=["none", "not merged", "into another branch", "as another commit"],
)
def test_a_commit_without_its_merge_request_has_no_reviewed_plan(shown: Server, found: list[dict[str, Any]]) -> None:
    shown.merge_requests = found
    sentence = failure(lambda: reviewed_plan(MERGE, "main"))
    assert "Commit bbbbbbbb on main did not come from a merge request" in sentence
