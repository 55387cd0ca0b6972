"""The client against a gateway."""

import asyncio
import logging
from typing import Any, AsyncIterator, Dict

import pytest
from fastapi import HTTPException
from tollgate_client import TollgateError, UserManagerClient, default_client, validate_user

from .conftest import Gateway, User

pytestmark = pytest.mark.anyio


@pytest.fixture
async def users(gateway: Gateway) -> AsyncIterator[UserManagerClient]:
    async with UserManagerClient() as client:
        assert client.base_url == gateway.url, "from the environment"
        yield client


async def refused(users: UserManagerClient, key: str, **options: Any) -> TollgateError:
    with pytest.raises(TollgateError) as caught:
        await users.verify_user(key, **options)
    error = caught.value
    assert isinstance(error, HTTPException)
    assert (error.status_code, error.detail, error.headers) == (error.status, error.message, error.headers)
    assert error.request_id and error.request_id.startswith("req_")
    assert key not in repr(error) + str(error)
    return error


async def test_each_verification_charges_once_and_says_what_is_left(users: UserManagerClient, user: User) -> None:
    for left in (9, 8, 7):
        info = await users.verify_user(user.key, "127.0.0.1")
        assert info["remaining_conversations"] == info["remaining"]["conversations"] == left
        assert user.left() == left
    assert (info["user_id"], info["username"], info["email"]) == (user.id, user.name, f"{user.name}@example.com")
    assert (info["valid"], info["plan"], info["remaining"]["credits"]) == (True, "free", 5)


async def test_who_has_nothing_left_is_told_what_and_until_when(users: UserManagerClient, user: User) -> None:
    answers = await asyncio.gather(*(users.verify_user(user.key) for _ in range(14)), return_exceptions=True)
    let_in = sorted(a["remaining_conversations"] for a in answers if not isinstance(a, BaseException))
    assert let_in == [*range(10)], answers
    error = await refused(users, user.key)
    assert (error.status, error.code, error.message) == (429, "CREDITS_EXHAUSTED", "Insufficient conversation credits")
    assert error.errors == ["conversations: 0 left, 1 needed"]
    assert error.limits is not None and error.limits["meter"] == "conversations" and error.limits["resets_at"]
    assert user.left() == 0


async def test_a_rate_says_when_to_come_back(users: UserManagerClient, user: User) -> None:
    key = user.call("POST", "/v1/users/keys", json={"name": "slow", "per_minute": 1})["api_key"]
    await users.verify_user(key)
    error = await refused(users, key)
    assert (error.status, error.code) == (429, "RATE_LIMITED")
    assert error.retry_after is not None and 1 <= error.retry_after <= 60
    assert error.headers == {"Retry-After": str(error.retry_after)}
    assert user.left() == 9


async def test_a_revoked_key_opens_nothing(users: UserManagerClient, user: User) -> None:
    await users.verify_user(user.key)
    fresh = user.call("POST", "/v1/users/api-key/regenerate", json={})["api_key"]
    for key in (user.key, "pe-00000000000000000000000000000000"):
        error = await refused(users, key)
        assert (error.status, error.code) == (401, "UNAUTHENTICATED")
        assert error.headers == {"WWW-Authenticate": 'Bearer realm="tollgate"'}
    assert (await users.verify_user(fresh))["remaining_conversations"] == 8


async def test_a_session_is_no_key(users: UserManagerClient, user: User) -> None:
    assert (await refused(users, user.session)).status == 401


async def test_a_session_is_looked_at_and_pays_nothing(users: UserManagerClient, user: User) -> None:
    for answer in (await users.validate_user(user.session), await validate_user(user.session)):
        assert (answer["valid"], answer["user_id"], answer["username"]) == (True, user.id, user.name)
    for other in (user.key, "nonsense"):
        answer = await users.validate_user(other)
        assert (answer["valid"], answer["error_code"]) == (False, "UNAUTHENTICATED")
    user.call("POST", "/v1/users/logout", json={})
    assert (await users.validate_user(user.session))["valid"] is False
    assert user.left() == 10
    await default_client().aclose()


async def test_a_suspended_user_is_refused(users: UserManagerClient, user: User) -> None:
    user.manage("POST", "/suspend", json={})
    error = await refused(users, user.key)
    assert (error.status, error.code) == (403, "FORBIDDEN")
    user.manage("POST", "/activate", json={})
    assert (await users.verify_user(user.key))["remaining_conversations"] == 9


async def test_the_user_s_address_is_what_rules_see(users: UserManagerClient, user: User) -> None:
    # The gateway of the tests trusts this machine, and lets nobody in from 203.0.113.0/24.
    for address in ("203.0.113.9", "::ffff:203.0.113.9"):
        error = await refused(users, user.key, client_ip=address)
        assert (error.status, error.code) == (403, "ADDRESS_DENIED")
    for other in ("198.51.100.7", "2001:db8::1", "testclient", None):
        await users.verify_user(user.key, other)
    body = {"name": "office", "cidrs": ["198.51.100.0/24"]}
    key = user.call("POST", "/v1/users/keys", json=body)["api_key"]
    assert (await refused(users, key, client_ip="192.0.2.1")).status == 403
    await users.verify_user(key, "198.51.100.7")


async def test_a_conversation_is_in_the_user_s_log(users: UserManagerClient, user: User) -> None:
    messages = [{"role": "user", "content": "Hello \u2713 there"}]
    assert await users.log_conversation(user.key, "gpt-3.5-turbo", messages) is True
    more: Dict[str, Any] = {"response": "Hi!", "research_model": True, "r_type": "tot"}
    counts: Dict[str, Any] = {"input_tokens": 3, "output_tokens": 2, "processing_time_ms": 40}
    assert await users.log_conversation(user.key, "gpt-4o", messages, **more, **counts, client_ip="192.0.2.1")
    latest, first = user.conversations()
    assert (first["model"], first["messages"]["request"]) == ("gpt-3.5-turbo", messages), first
    assert (latest["model"], latest["messages"]["response"]["content"]) == ("gpt-4o", "Hi!"), latest
    assert (latest["research_enabled"], latest["r_type"], latest["tokens_used"]) == (True, "tot", 5), latest
    assert (latest["processing_time_ms"], latest["ip_address"]) == (40, "192.0.2.1"), latest
    assert user.left() == 10, "handing in costs nothing"


async def test_what_is_not_kept_is_said(users: UserManagerClient, user: User, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tollgate_client"):
        user.manage("PUT", json={"log_conversations": False})
        assert await users.log_conversation(user.key, "m", []) is False
        assert not caplog.records, "that is as it should be"
        for key, model, messages, code in (
            ("pe-wrong", "m", [], "UNAUTHENTICATED"),
            (user.key, "m", [{"role": "user", "content": "half a \ud83d"}], "BAD_REQUEST"),
        ):
            assert await users.log_conversation(key, model, messages) is False
            assert code in caplog.text and "req_" in caplog.text and key not in caplog.text
            caplog.clear()
            with pytest.raises(TollgateError) as caught:
                await users.log_conversation(key, model, messages, raise_errors=True)
            assert caught.value.code == code
    assert user.conversations() == []
