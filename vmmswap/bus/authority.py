# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may change things: root, whoever polkit allows, and on a host without polkit the VM's own uid.

Each action has a second one, ACTION-own, for the user whose VM it is: as shipped polkit allows him that.
polkit is told which VM it is about and whose, for rules: action.lookup("vm"), action.lookup("owner_uid").
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmmswap.bus.connection import Connection
from vmmswap.bus.dbus import Variant
from vmmswap.bus.dispatch import DBUS_ERROR, Caller, RemoteError
from vmmswap.bus.interface import OWN
from vmmswap.bus.presence import CallerLeftError
from vmmswap.bus.waiting import PASSWORDS, QUESTIONS, Places, Slots
from vmmswap.errors import AccessDeniedError
from vmmswap.log import fields
from vmmswap.message_ids import ACCESS_DENIED

log = logging.getLogger(__name__)

POLKIT = "org.freedesktop.PolicyKit1"
_AUTHORITY_PATH = "/org/freedesktop/PolicyKit1/Authority"
_AUTHORITY = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1
_ANSWER_TIMEOUT_S = 20.0
_PASSWORD_TIMEOUT_S = 120.0
_DENIALS_LOGGED = 100  # of one uid in one period
_DENIALS_PERIOD_S = 60.0
_ABSENT = (DBUS_ERROR + "ServiceUnknown", DBUS_ERROR + "NameHasNoOwner")


@dataclass(frozen=True, slots=True)
class _Question:
    """What polkit is asked."""

    caller: Caller
    action: str
    name: str
    owner_uid: int | None

    def arguments(self) -> list[Any]:
        """Subject, action, details and flags of CheckAuthorization."""
        subject = ["system-bus-name", {"name": Variant("s", self.caller.name)}]
        details = {"vm": self.name}
        if self.owner_uid is not None:
            details["owner_uid"] = str(self.owner_uid)
        return [subject, self.action, details, _ALLOW_USER_INTERACTION if self.caller.interactive else 0]


class Authority:
    """Decides for one connection's callers.

    vmmswapd forwards as root what it has authorised itself, so a monitor that is called by uid 0 asks no
    further: each call is authorised once, for the real caller, where it arrives.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked = 0
        self._passwords = Places(PASSWORDS, "questions for a password")
        self._questions = Slots(QUESTIONS)
        self._denials: Counter[int] = Counter()
        self._denials_since_s = 0.0

    async def check(
        self, caller: Caller, action: str, name: str, owner_uid: int | None, *, is_own_process: bool = False
    ) -> None:
        """Return if the caller may do the action; else log the denial and raise AccessDeniedError.

        `name` is the VM that it is about, `owner_uid` the uid whose VM or name that is, None if nobody's.
        is_own_process: a VM of his own would come of it, which on a host without polkit is enough.
        """
        if caller.uid == 0:
            return
        if caller.uid == owner_uid:
            action += OWN
        question = _Question(caller, action, name, owner_uid)
        reason = await self._denial(question, is_own=caller.uid == owner_uid or is_own_process)
        if reason:
            self.log_denial(caller, action, name, reason)
            raise AccessDeniedError(f"uid {caller.uid} may not do this ({action}): {reason}")

    def log_denial(self, caller: Caller, action: str, name: str, reason: str) -> None:
        """Log that the caller was not let do the action, unless this has just been logged too often."""
        # journald drops messages of a unit that writes too many. Nobody's calls may make it drop the others.
        now_s = time.monotonic()
        if now_s - self._denials_since_s > _DENIALS_PERIOD_S:
            self._denials_since_s = now_s
            self._denials.clear()
        self._denials[caller.uid] += 1
        if self._denials[caller.uid] < _DENIALS_LOGGED:
            log.warning(
                "denied uid %d (pid %d) %s for the VM %s: %s",
                caller.uid,
                caller.pid,
                action,
                name,
                reason,
                extra=fields(
                    message_id=ACCESS_DENIED,
                    vmmswap_vm=name,
                    vmmswap_caller_uid=caller.uid,
                    vmmswap_caller_pid=caller.pid,
                    vmmswap_action=action,
                ),
            )
        elif self._denials[caller.uid] == _DENIALS_LOGGED:
            log.warning("denied uid %d again; further denials are not logged for a while", caller.uid)

    async def _denial(self, question: _Question, *, is_own: bool) -> str:
        if await self._has_polkit():
            try:
                return await self._connection.presence.run(question.caller.name, self._ask_in_turn(question))
            except CallerLeftError:
                raise
            except RemoteError as error:
                if error.error_name not in _ABSENT:
                    return f"polkit answered {error.error_name}: {error.message}"
        if is_own:
            return ""
        return "this host has no polkit, so only root and the VM's own user may"

    async def _has_polkit(self) -> bool:
        if await self._connection.owner_of(POLKIT):
            return True
        return POLKIT in await self._connection.list_names("ListActivatableNames")

    async def _ask_in_turn(self, question: _Question) -> str:
        """Nobody's questions take all the replies that the bus lets us wait for."""
        uid = question.caller.uid
        if question.caller.interactive:
            return await self._ask_polkit(question, self._passwords.take(uid), _PASSWORD_TIMEOUT_S)
        return await self._ask_polkit(question, await self._questions.take(uid), _ANSWER_TIMEOUT_S)

    async def _ask_polkit(self, question: _Question, on_settled: Callable[[], None], timeout_s: float) -> str:
        self._asked += 1
        cancellation_id = f"vmmswap-{self._asked}"
        try:
            [[allowed, challenge, _details]] = await self._connection.call(
                POLKIT,
                _AUTHORITY_PATH,
                _AUTHORITY,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                [*question.arguments(), cancellation_id],
                timeout_s=timeout_s,
                on_settled=on_settled,
            )
        except BaseException:  # the bus counts the question until polkit has answered it
            self._connection.send_call(
                POLKIT, _AUTHORITY_PATH, _AUTHORITY, "CancelCheckAuthorization", "s", [cancellation_id]
            )
            raise
        if allowed:
            return ""
        if challenge:
            return "polkit wants a password: call as root, or allow it by a rule in /etc/polkit-1/rules.d"
        return "polkit does not allow it; a rule in /etc/polkit-1/rules.d can"
