"""Drives the official OpenAI client against a gateway and prints what it saw, as JSON on one line.

Arguments: base URL, scenario. The API key comes from OPENAI_API_KEY, as it does for every user of that client.
"""

import json
import sys

import openai

QUESTION = [{"role": "user", "content": "Hello from Python"}]
MODEL = "gpt-4o"


def plain(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
    answer = raw.parse()
    return {
        "text": answer.choices[0].message.content,
        "model": answer.model,
        "finish_reason": answer.choices[0].finish_reason,
        "completion_tokens": answer.usage.completion_tokens,
        "request_id": answer._request_id,
        "left": raw.headers["x-tollgate-remaining-conversations"],
    }


def stream(client, **options):
    pieces, usage, events = [], None, 0
    for event in client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **options):
        events += 1
        if event.choices and event.choices[0].delta.content:
            pieces.append(event.choices[0].delta.content)
        if event.usage is not None:
            usage = event.usage.completion_tokens
    return {"text": "".join(pieces), "events": events, "usage": usage}


def stream_with_usage(client):
    return stream(client, stream_options={"include_usage": True})


def models(client):
    return {"models": [model.id for model in client.models.list()], "one": client.models.retrieve(MODEL).id}


def embeddings(client):
    answer = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    return {"count": len(answer.data), "length": len(answer.data[0].embedding), "tokens": answer.usage.prompt_tokens}


def responses(client):
    answer = client.responses.create(model=MODEL, input="Hello from Python")
    return {"text": answer.output_text}


def failure(client):
    try:
        client.chat.completions.create(model=MODEL, messages=QUESTION)
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "type": error.type,
            "param": error.param,
            "message": error.body["message"],
            "request_id": error.request_id,
        }
    return {"class": None}


SCENARIOS = {f.__name__: f for f in (plain, stream, stream_with_usage, models, embeddings, responses, failure)}

with openai.OpenAI(base_url=sys.argv[1], max_retries=0, timeout=20) as client:
    print(json.dumps(SCENARIOS[sys.argv[2]](client)))
