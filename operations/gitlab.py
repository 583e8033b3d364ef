"""The merge request's own note: written once, brought up to date afterwards, found again by its marker.

Everything comes from the variables of a GitLab job. The token is a project access token, because the job's own token
(``CI_JOB_TOKEN``) may read notes but not write any. It is sent in a header and appears in no message.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gitlab
import requests
from gitlab.v4.objects import Project, ProjectMergeRequest
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

TOKEN = "SCHOOL_GITLAB_TOKEN"
"""Variable with the project access token: scope ``api``, role Reporter; masked and protected."""
PLAN_DIGEST = "SCHOOL_PLAN_DIGEST"
"""Variable with the digest of the saved plan that the note shows; :func:`publish` notes it down when it is set."""

PAUSES: tuple[float, ...] = (1, 3, 9)
"""Seconds before each further attempt when GitLab fails (5xx) or the connection does."""
WAITS = 4
"""How often an answer "too many requests" (429) is waited for, in one request."""
LONGEST_WAIT_SECONDS = 60
"""The most that ``Retry-After`` is obeyed; also the most that is waited when GitLab does not say how long."""
TIMEOUT_SECONDS = 30
"""How long GitLab may take for one answer."""

_API = "/api/v4"
_SHOWN_CHARACTERS = 200
_PLAN_LINE = "<!-- school-postgres plan {digest} of {commit} -->"
_PLAN = re.compile(r"<!-- school-postgres plan ([0-9a-f]{64}) of ([0-9a-f]{40,64}) -->")

_Result = TypeVar("_Result")


class GitLabError(Exception):
    """GitLab did not do what was asked; the text is one sentence: what failed, why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GitLabSettings:
    """What a job is told by GitLab, and the token it was given."""

    base_url: str
    """Address of GitLab without the path of its API."""
    project: str
    """Number of the project."""
    token: str = field(repr=False)
    ca_file: str | None = None
    """File with the certificate authority of GitLab; None: the system's authorities."""
    merge_request: str | None = None
    """Number of the merge request within the project; None outside a merge request's pipeline."""
    commit: str = ""
    """The commit that the job works on; in a merge request's pipeline the last one of the source branch."""
    plan_digest: str | None = None
    """Digest of the saved plan; None when there is no plan to be reviewed."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> GitLabSettings:
        """Read the variables of the job.

        :raises GitLabError: if one is missing or cannot be used, such as a token with a line break in it.
        """
        api, project, token = (variables.get(name, "") for name in ("CI_API_V4_URL", "CI_PROJECT_ID", TOKEN))
        if not api or not project:
            missing = "CI_PROJECT_ID" if api else "CI_API_V4_URL"
            raise GitLabError(f"GitLab cannot be asked: the variable {missing} is empty; run this in a job of GitLab.")
        if not re.fullmatch(r"https?://.+" + _API, api):
            raise GitLabError(
                f"GitLab cannot be asked: CI_API_V4_URL is {api!r}, not an address that ends with {_API}."
            )
        if not token:
            raise GitLabError(
                f"GitLab cannot be asked: the variable {TOKEN} is empty; protected variables reach a merge request's "
                "pipeline only as docs/pipelines.md describes under Variables."
            )
        # The HTTP library quotes a header it refuses, so the token is looked at before.
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise GitLabError(
                f"GitLab cannot be asked: {TOKEN} contains a blank, a line break or a letter that no token has; paste "
                "the token again without anything around it."
            )
        ca_file = variables.get("CI_SERVER_TLS_CA_FILE") or None
        if ca_file is not None and not Path(ca_file).is_file():
            raise GitLabError(
                f"GitLab cannot be asked: there is no file {ca_file}, which CI_SERVER_TLS_CA_FILE names; look at the "
                "runner's setting tls-ca-file."
            )
        return cls(
            base_url=api.removesuffix(_API),
            project=project,
            token=token,
            ca_file=ca_file,
            merge_request=variables.get("CI_MERGE_REQUEST_IID") or None,
            commit=variables.get("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA") or variables.get("CI_COMMIT_SHA", ""),
            plan_digest=variables.get(PLAN_DIGEST) or None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewedPlan:
    """What was noted down about the plan that a merge request showed last."""

    merge_request: str
    """``!7``"""
    digest: str
    """SHA-256 in hexadecimal digits."""


def publish(body: str, marker: str) -> str:
    """Write the merge request's own note, or bring it up to date; returns its address.

    A note is the own one when it contains ``marker`` and was written with the same token's user; anybody else's is left
    alone. What fails for the moment is tried again (see :data:`PAUSES`, :data:`WAITS`), and never leads to two notes.

    :param body: Markdown; ``marker`` is put in front when it is not in it.
    :param marker: a text that no other note has, best an HTML comment.
    :raises GitLabError: when the note could not be written.
    """
    settings = GitLabSettings.from_environment(os.environ)
    iid = settings.merge_request
    if iid is None:
        raise GitLabError("There is no merge request to comment on: CI_MERGE_REQUEST_IID is empty in this pipeline.")
    text = body if marker in body else f"{marker}\n{body}"
    if settings.plan_digest:
        text = f"{text.rstrip()}\n\n{_PLAN_LINE.format(digest=settings.plan_digest, commit=settings.commit)}\n"

    def write() -> str:
        with _client(settings) as client:
            me = _user(client)
            merge_request = client.projects.get(settings.project, lazy=True).mergerequests.get(iid)
            note = _own_note(me, merge_request, marker)
            if note is None:
                note = merge_request.notes.create({"body": text})
            else:
                note.body = text
                note.save()
            return f"{merge_request.web_url}#note_{note.id}"

    return _patiently(settings, f"The note of merge request !{iid} was not written", write)


def reviewed_plan(commit: str, branch: str) -> ReviewedPlan:
    """The plan that was shown last in the merge request whose merging made ``commit`` on ``branch``.

    :raises GitLabError: when no merge request was merged as this commit, when its last preview showed no plan, or
        when that preview was of an older commit than the one merged.
    """
    settings = GitLabSettings.from_environment(os.environ)

    def read() -> ReviewedPlan:
        with _client(settings) as client:
            me = _user(client)
            merged = _merged_as(client.projects.get(settings.project, lazy=True), commit, branch)
            note = _own_note(me, merged, _PLAN_LINE.partition("{")[0])
        name = f"!{merged.iid}"
        found = _PLAN.search(note.body) if note is not None else None
        if found is None:
            raise GitLabError(f"Merge request {name} shows no plan: its last preview failed, or there was none.")
        if found[2] != merged.sha:
            raise GitLabError(
                f"The plan in merge request {name} is of commit {found[2][:8]}, but {merged.sha[:8]} was merged."
            )
        return ReviewedPlan(merge_request=name, digest=found[1])

    return _patiently(settings, f"What was reviewed for commit {commit[:8]} is not known", read)


def _client(settings: GitLabSettings) -> gitlab.Gitlab:
    """A client that repeats what was refused as one request too many, and leaves all other failures to the caller."""
    session = requests.Session()
    # The token's header would follow a redirection to any other server.
    session.max_redirects = 0
    retry = Retry(
        total=None,
        connect=0,
        read=False,
        other=0,
        redirect=False,
        status=WAITS,
        # A request that was refused as one too many has done nothing, so every method may be repeated.
        status_forcelist=(429,),
        allowed_methods=None,
        backoff_factor=1,
        backoff_max=LONGEST_WAIT_SECONDS,
        retry_after_max=LONGEST_WAIT_SECONDS,
    )
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return gitlab.Gitlab(
        settings.base_url,
        private_token=settings.token,
        ssl_verify=settings.ca_file or True,
        timeout=TIMEOUT_SECONDS,
        keep_base_url=True,
        session=session,
    )


def _user(client: gitlab.Gitlab) -> int:
    """Number of the user that the token belongs to."""
    answer = client.http_get("/user")
    if not isinstance(answer, dict):
        raise gitlab.GitlabParsingError("the user is no JSON object")
    return int(answer["id"])


def _own_note(me: int, merge_request: ProjectMergeRequest, marker: str) -> Any:
    """The first note that contains ``marker`` and was written by user ``me``; None when there is none."""
    for note in merge_request.notes.list(iterator=True, per_page=100, sort="asc"):
        if marker in note.body and note.author["id"] == me and not note.system:
            return note
    return None


def _merged_as(project: Project, commit: str, branch: str) -> ProjectMergeRequest:
    """The merge request whose merging made ``commit`` on ``branch``. Raises :class:`GitLabError` if there is none."""
    for found in project.commits.get(commit, lazy=True).merge_requests():
        ends = (found["sha"], found.get("merge_commit_sha"), found.get("squash_commit_sha"))
        if found["state"] == "merged" and found["target_branch"] == branch and commit in ends:
            return project.mergerequests.get(found["iid"])
    raise GitLabError(
        f"Commit {commit[:8]} on {branch} did not come from a merge request, so nobody reviewed its plan."
    )


def _patiently(settings: GitLabSettings, outcome: str, work: Callable[[], _Result]) -> _Result:
    """Do ``work`` as a whole, again if GitLab or the connection fails; what it finds done it does not do twice.

    :param outcome: how the sentence starts that says it failed.
    """
    attempts = len(PAUSES) + 1
    for attempt in range(attempts):
        try:
            return work()
        except gitlab.GitlabError as error:
            failure = _refusal(settings, error)
        except requests.RequestException as error:
            failure = _no_answer(error)
        if not failure.may_pass:
            break
        if attempt < len(PAUSES):
            time.sleep(PAUSES[attempt])
    tried = f" (tried {attempts} times)" if failure.may_pass else ""
    raise GitLabError(f"{outcome}: GitLab at {settings.base_url} {failure.why}{tried}; {failure.remedy}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    why: str
    """What GitLab did, behind its name."""
    remedy: str
    """What the reader is to do."""
    may_pass: bool = False
    """Whether another attempt may succeed."""


def _refusal(settings: GitLabSettings, error: gitlab.GitlabError) -> _Failure:
    """What an answer means that is no success."""
    code = error.response_code
    if code is None:
        return _Failure(why="gave an answer that cannot be understood", remedy="look at what answers at CI_API_V4_URL")
    if code >= 500:
        return _Failure(why=f"fails itself ({code})", remedy="run the job again when it works", may_pass=True)
    if code == 401:
        return _Failure(
            why="does not know the token (401), which has expired or was revoked",
            remedy=f"make a new one and put it into {TOKEN}",
        )
    if code == 403:
        return _Failure(
            why="does not allow this with the token (403)",
            remedy=f"give the token in {TOKEN} the scope api and the role Reporter",
        )
    if code == 404:
        return _Failure(
            why=f"shows no such thing in project {settings.project} to this token (404)",
            remedy=f"make the token in {TOKEN} in this project",
        )
    said = " ".join(str(error.error_message).replace(settings.token, "***").split())[:_SHOWN_CHARACTERS]
    return _Failure(
        why=f"refuses the request ({code}: {said})", remedy="change what it names, or ask its administrator"
    )


def _no_answer(error: requests.RequestException) -> _Failure:
    """What a request without a usable answer means."""
    if isinstance(error, requests.exceptions.SSLError):
        return _Failure(
            why="shows a certificate that is not trusted",
            remedy="give the runner the authority that signed it (CI_SERVER_TLS_CA_FILE)",
        )
    if isinstance(error, requests.TooManyRedirects):
        return _Failure(
            why="sends the request on to another address", remedy="set GitLab's external_url to the final address"
        )
    if isinstance(error, requests.exceptions.RetryError):
        return _Failure(why="goes on saying that there are too many requests (429)", remedy="run the job again later")
    remedy = "check the way from the runner to GitLab"
    if isinstance(error, requests.Timeout):
        return _Failure(why=f"does not answer within {TIMEOUT_SECONDS} s", remedy=remedy, may_pass=True)
    return _Failure(why=f"cannot be reached: {_cause(error)}", remedy=remedy, may_pass=True)


def _cause(error: BaseException) -> str:
    """What the operating system said, without addresses of objects and without what was sent."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return "the connection was cut"
