"""What becomes of a task's pods: why they wait, what they say, how they ended, and what that means to Airflow.

Looks at what the API server tells, and asks again where the server does not answer. Starts and deletes nothing: that is `submission`'s.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kubernetes.client import ApiException, CoreV1Api
from kubernetes.client import models as k8s
from urllib3.exceptions import HTTPError

from mlops_tasks.errors import BY_EXIT_CODE, Interrupted, Killed, Unavailable, UserError, WmtpError
from wmtp.manifest import CONTAINER, INDEX
from wmtp.process import Story
from wmtp.task import stopped

log = logging.getLogger(__name__)

R = TypeVar("R")

SECONDS_BETWEEN_LOOKS = 2.0
PATIENCE_SECONDS = 900.0
# For a last request. Whoever asked this process to stop kills it soon: Airflow after 5 s, Kubernetes after 30 s if it is not told otherwise.
PARTING_SECONDS = 5.0
# For one answer about one object; the client asks four times before it says that there is none.
REQUEST_SECONDS = 5.0
_AWAY = {401, 408, 429, 500, 502, 503, 504}
_NUM_LAST_LINES = 20
_BEING_MADE = "its container is being made"
# Between the server's clock of a line and ours of a request.
_OVERLAP_SECONDS = 10

_NEVER_STARTS = {"CreateContainerConfigError", "CreateContainerError", "InvalidImageName", "ErrImageNeverPull"}
_PULL = {"ErrImagePull", "ImagePullBackOff"}
_NO_SUCH_IMAGE = re.compile(r"not found|manifest unknown|does not exist|denied|unauthori[sz]ed", re.I)
_TAKEN_AWAY = {
    "Evicted",
    "Preempting",
    "Preempted",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "NodeAffinity",
}


def patiently(ask: Callable[[], R], *, seconds: float = PATIENCE_SECONDS) -> R:
    """What the API server answers, asked again while it is away or too busy.

    Args:
        seconds: for which it may be away; no more than `PARTING_SECONDS` once this process was asked to stop.

    Raises:
        ApiException: it refuses.
        Unavailable: it has been away for so long.
    """
    started, told = time.monotonic(), False
    while True:
        try:
            return ask()
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status not in _AWAY:
                raise
            allowed = min(seconds, PARTING_SECONDS) if stopped.is_set() else seconds
            if time.monotonic() - started > allowed:
                raise Unavailable(f"The API server has not answered for {allowed:.0f} s: {error}") from error
            if not told:
                log.warning("the API server does not answer, asking again: %s", str(error).partition("\n")[0])
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)


def waits_for(pod: k8s.V1Pod) -> str | None:
    """Why a pod does not run yet, in its own words; None: it runs, or has ended, or a queue holds it back.

    Raises:
        UserError: it never will.
    """
    if pod.status.phase != "Pending" or pod.spec.scheduling_gates:
        return None
    for status in pod.status.container_statuses or []:
        waiting = status.state.waiting if status.state else None
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            text = f"{waiting.reason}: {waiting.message or 'no more is told'}"
            if waiting.reason in _NEVER_STARTS or (waiting.reason in _PULL and _NO_SUCH_IMAGE.search(text)):
                raise UserError(
                    f"Pod {pod.metadata.name} with image {status.image} cannot start. {text}. Mend the profile in the environment file, "
                    "or what it names."
                )
            return text
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False" and condition.message:
            return str(condition.message)
    return _BEING_MADE if pod.spec.node_name else "it has no node yet"


@dataclass(frozen=True)
class Ending:
    """How a pod ended that did not succeed."""

    kind: type[WmtpError]
    sentence: str
    at: str
    """When, as ISO 8601."""


def ending(pod: k8s.V1Pod) -> Ending | None:
    """How a pod failed, without its words; None: it has not."""
    if pod.status.phase != "Failed":
        return None
    ended = next(
        (one.state.terminated for one in pod.status.container_statuses or [] if one.name == CONTAINER and one.state),
        None,
    )
    kind, sentence = _kind_of(pod, ended)
    at = ended.finished_at if ended and ended.finished_at else pod.metadata.creation_timestamp
    return Ending(kind, sentence, at.isoformat())


def _kind_of(pod: k8s.V1Pod, ended: k8s.V1ContainerStateTerminated | None) -> tuple[type[WmtpError], str]:
    reason, message = pod.status.reason, pod.status.message or ""
    disrupted = next(
        (one for one in pod.status.conditions or [] if one.type == "DisruptionTarget" and one.status == "True"), None
    )
    if reason == "DeadlineExceeded":
        return WmtpError, f"was ended after its time: {message}"
    if disrupted or reason in _TAKEN_AWAY:
        return (
            Interrupted,
            f"was taken away ({disrupted.reason if disrupted else reason}): {message or (disrupted and disrupted.message)}",
        )
    if ended is None:
        return WmtpError, f"failed without having run ({reason}): {message}"
    if ended.reason == "OOMKilled" or (ended.exit_code == 137 and reason == "OOMKilled"):
        limit = (pod.spec.containers[0].resources.limits or {}).get("memory", "none")
        return (
            Killed,
            f"was OOMKilled ({ended.exit_code}): over its memory limit of {limit}. Raise limits.memory of its profile, or have it do less at once",
        )
    code = ended.exit_code
    if code > 128:
        return Killed, f"ended with {code}, killed by signal {code - 128}"
    return BY_EXIT_CODE.get(code, WmtpError), f"ended with {code}"


@dataclass
class Lines:
    """The log of one container, in pieces, each line once."""

    client: CoreV1Api
    pod: str
    namespace: str
    _read_at: float | None = None
    _seen: frozenset[str] = frozenset()

    def new(self) -> list[str]:
        """Lines that were not read before; a piece that cannot be had now comes with the next one."""
        now = time.monotonic()
        since = None if self._read_at is None else int(now - self._read_at) + _OVERLAP_SECONDS
        try:
            # Not text: the client would make Python's own form of bytes of it.
            reply = self.client.read_namespaced_pod_log(
                self.pod,
                self.namespace,
                container=CONTAINER,
                timestamps=True,
                since_seconds=since,
                _preload_content=False,
            )
            read = reply.data.decode("utf-8", "replace").splitlines()
        except (ApiException, HTTPError):
            return []
        found = [line for line in read if line not in self._seen]
        self._read_at, self._seen = now, frozenset(read)
        return [line.partition(" ")[2] for line in found]


@dataclass
class Watch:
    """The pods of one task, looked at again and again until they have ended."""

    client: CoreV1Api
    namespace: str
    label: str
    start_seconds: float
    _stories: dict[str, tuple[Lines, Story]] = field(default_factory=dict)
    _told: str = ""
    _waits_since: float | None = None

    def look(self, pods: Sequence[k8s.V1Pod], *, unmade: str = "") -> None:
        """Pass on what the first pod says and why others wait.

        Args:
            unmade: why there are fewer pods than there should be; empty where there are not.

        Raises:
            WmtpError: one of them failed, and not because it was interrupted; with the first such failure.
            Unavailable: one has waited for too long.
        """
        for pod in pods:
            if _index(pod) == 0:
                self._listen(pod)
        reasons = [reason for pod in pods if (reason := self._why(pod))]
        self.wait([*([unmade] if unmade else []), *reasons])
        self.refuse_failures(pods, is_interruption_one=False)

    def refuse_failures(self, pods: Sequence[k8s.V1Pod], *, is_interruption_one: bool = True) -> None:
        """Raise what the first pod that failed died of, after the last lines of each.

        Args:
            is_interruption_one: False where the Job replaces a pod that was interrupted.
        """
        failed = [(found, pod) for pod in pods if (found := ending(pod))]
        failed = [one for one in failed if is_interruption_one or one[0].kind is not Interrupted]
        if not failed:
            return
        first, culprit = min(failed, key=lambda one: (one[0].kind is Interrupted, one[0].at))
        for pod in pods:
            if _index(pod) > 0:
                self._listen(pod, num_lines=_NUM_LAST_LINES)
        self._listen(culprit)
        story = self._stories[culprit.metadata.uid][1]
        which = f"pod {culprit.metadata.name}" + (f" (number {number})" if (number := _index(culprit)) else "")
        said = story.last_error or "it said nothing"
        raise first.kind(f"{self.label}: {which} {first.sentence}: {said}")

    @property
    def last_line(self) -> str:
        """What a first pod said last."""
        return next((story.last_line for _, story in reversed(self._stories.values())), "")

    def tell(self, text: str) -> None:
        """Say once what is waited for."""
        if text and text != self._told:
            log.info("%s waits: %s", self.label, text)
        self._told = text

    def wait(self, reasons: Sequence[str]) -> None:
        """Tell why there is no start yet, as found at one look; with no reason there is one.

        Raises:
            Unavailable: there has been one at each look for too long.
        """
        if not reasons:
            self._waits_since = None
            return
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        self.tell("; ".join(dict.fromkeys(reasons)))
        if now - self._waits_since > self.start_seconds:
            raise Unavailable(
                f"{self.label} has waited {self.start_seconds:.0f} s (start_seconds of its profile) and could not start: {reasons[0]}"
            )

    def _why(self, pod: k8s.V1Pod) -> str | None:
        reason = waits_for(pod)
        if reason != _BEING_MADE:
            return reason
        # Volumes that cannot be mounted are told of in events only; before its node was found there were others.
        warning = last_warning(self.client, pod)
        return reason if not warning or warning.startswith("FailedScheduling") else f"{reason}. {warning}"

    def _listen(self, pod: k8s.V1Pod, *, num_lines: int | None = None) -> None:
        if pod.status.phase == "Pending":
            return
        number = _index(pod)
        made = (Lines(self.client, pod.metadata.name, self.namespace), Story(f"pod {number}: " if number else ""))
        lines, story = self._stories.setdefault(pod.metadata.uid, made)
        new = lines.new()
        for line in new[-num_lines:] if num_lines else new:
            story.hear(line)


def _index(pod: k8s.V1Pod) -> int:
    return int((pod.metadata.annotations or {}).get(INDEX, 0))


def refusal(error: ApiException, what: str) -> WmtpError:
    """What it means that the API server does not take an object."""
    told = _message(error)
    if error.status == 403 and "exceeded quota" in told:
        return Unavailable(f"{what} has no room: {told}")
    return UserError(
        f"{what} was refused by the API server ({error.status}): {told}. Mend the profile, or the rights of Airflow's account."
    )


def _message(error: ApiException) -> str:
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return found[1].replace('\\"', '"') if found else str(error.reason)


def last_warning(client: CoreV1Api, subject: Any) -> str:
    """The last warning about an object; empty where there is none."""
    about = f"involvedObject.uid={subject.metadata.uid},type=Warning"
    found: list[Any] = client.list_namespaced_event(subject.metadata.namespace, field_selector=about).items
    found.sort(key=lambda one: str(one.last_timestamp or one.event_time))
    return f"{found[-1].reason}: {found[-1].message}" if found else ""


def admission(workloads: Sequence[dict[str, Any]], held: str) -> str:
    """What Kueue says of a Job or a pod that it holds back.

    Args:
        workloads: Kueue's objects of the namespace.
        held: uid of the Job or the pod.
    """
    for one in workloads:
        if any(owner["uid"] == held for owner in one["metadata"].get("ownerReferences", [])):
            conditions = one.get("status", {}).get("conditions", [])
            told = [each["message"] for each in conditions if each["status"] == "False" and each.get("message")]
            return f"Kueue has not admitted it: {'; '.join(told) or 'no reason is told yet'}"
    return "Kueue has not taken it up yet"
