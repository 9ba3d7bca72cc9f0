"""What the official client sees, a line a check: ok - NAME or not ok - NAME (t/client_openai.t)."""

import sys

import openai

URL = sys.argv[1]
client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=20)


def check(good, name):
    print("ok -" if good else "not ok -", name, flush=True)


def equal(got, want, name):
    check(got == want, name)
    if got != want:
        print(f"  got {got!r}, want {want!r}", flush=True)


def raises(kind, name, call, **members):
    try:
        call()
    except kind as e:
        check(type(e) is kind, f"{name}: {kind.__name__}")
        for member, value in members.items():
            equal(getattr(e, member), value, f"{name}: {member}")
        return
    except openai.OpenAIError as e:
        print(f"  {e!r}", flush=True)
    check(False, f"{name}: {kind.__name__}")


def user(text):
    return [{"role": "user", "content": text}]


def chat(text, **more):
    return client.chat.completions.create(model="fake", messages=user(text), **more)


# models

equal([m.id for m in client.models.list()], ["fake", "alias"], "models.list")
model = client.models.retrieve("alias")
equal((model.id, model.object), ("alias", "model"), "models.retrieve")
raises(openai.NotFoundError, "an unknown model", lambda: client.models.retrieve("none"),
       status_code=404, code="model_not_found")

# chat

r = chat("tokens=2")
equal(r.object, "chat.completion", "chat: object")
equal(r.choices[0].message.role, "assistant", "chat: role")
equal(r.choices[0].message.content, "t0 t1", "chat: content")
equal(r.choices[0].finish_reason, "stop", "chat: finish_reason")
equal((r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.total_tokens), (1, 2, 3),
      "chat: usage")
check(r.id and r.created and r.system_fingerprint, "chat: id, created, system_fingerprint")
check(r._request_id, "chat: x-request-id")

r = chat("tokens=9", max_completion_tokens=4, n=1, temperature=0.5, top_p=0.9, seed=1, stop=["x"],
         user="somebody", presence_penalty=0, frequency_penalty=0, logit_bias={}, store=False,
         metadata={"a": "b"}, response_format={"type": "text"}, tool_choice="none",
         parallel_tool_calls=True, service_tier="auto")
equal([c.message.content for c in r.choices], ["t0 t1 t2 t3"], "chat: max_completion_tokens")
equal([c.finish_reason for c in r.choices], ["length"], "chat: length")

r = client.chat.completions.create(model="fake", messages=[
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "tokens=1"},
                                 {"type": "text", "text": " of two parts"}]}])
equal(r.choices[0].message.content, "t0", "chat: developer, list of text parts")

r = chat("answer=choice tokens=1", n=3)
equal([(c.index, c.message.content) for c in r.choices],
      [(0, "0.0"), (1, "1.0 1.1"), (2, "2.0 2.1 2.2")], "chat: n")
equal(r.usage.completion_tokens, 6, "chat: n, usage")

raises(openai.BadRequestError, "what is not there yet", lambda: chat("x", logprobs=True),
       status_code=400, param="logprobs")

# streams

events = list(chat("tokens=3 every=2", stream=True))
equal(events[0].object, "chat.completion.chunk", "stream: object")
equal(events[0].choices[0].delta.role, "assistant", "stream: role")
equal("".join(e.choices[0].delta.content or "" for e in events), "t0 t1 t2", "stream: content")
equal(events[-1].choices[0].finish_reason, "stop", "stream: finish_reason")

events = list(chat("tokens=3", stream=True, stream_options={"include_usage": True}))
equal((events[-1].choices, events[-1].usage.completion_tokens), ([], 3), "stream: usage")

texts = {}
for e in chat("answer=choice tokens=2", n=2, stream=True, stream_options={"include_usage": True}):
    for c in e.choices:
        texts.setdefault(c.index, []).append(c.finish_reason or c.delta.content)
equal({i: ["".join(t[:-1]), t[-1]] for i, t in texts.items()},
      {0: ["0.0 0.1", "stop"], 1: ["1.0 1.1 1.2", "stop"]}, "stream: n")

with chat("tokens=1000 every=5", stream=True) as stream:
    next(iter(stream))
check(True, "stream: left in the middle")


def broken_stream():
    for _ in chat("tokens=5 every=2 status=failed", stream=True):
        pass


raises(openai.APIError, "a stream that fails", broken_stream)

# completions

r = client.completions.create(model="fake", prompt="tokens=2", max_tokens=5)
equal((r.object, r.choices[0].text), ("text_completion", "t0 t1"), "completion: a string")
r = client.completions.create(model="fake", prompt=["tokens=2", "b"])
equal([c.text for c in r.choices], ["t0 t1"] * 2, "completion: two strings")
r = client.completions.create(model="fake", prompt=["answer=choice tokens=1", "b"], n=2, best_of=2)
equal([c.text for c in r.choices], ["0.0", "1.0 1.1", "2.0 2.1 2.2", "3.0 3.1 3.2 3.3"],
      "completion: n for each of two strings")
r = client.completions.create(model="fake", prompt=[1, 2, 3])
equal(r.usage.prompt_tokens, 3, "completion: ids")
r = client.completions.create(model="fake", prompt=[[1, 2], [3]])
equal([c.index for c in r.choices], [0, 1], "completion: lists of ids")
equal("".join(e.choices[0].text for e in
              client.completions.create(model="fake", prompt="tokens=3", stream=True)),
      "t0 t1 t2", "completion: stream")

# errors

raises(openai.NotFoundError, "chat with an unknown model",
       lambda: client.chat.completions.create(model="none", messages=user("x")),
       status_code=404, code="model_not_found")
raises(openai.BadRequestError, "a temperature out of range", lambda: chat("x", temperature=9),
       status_code=400, param="temperature")
raises(openai.BadRequestError, "a prompt that does not fit", lambda: chat("status=context_length"),
       status_code=400, code="context_length_exceeded")
raises(openai.RateLimitError, "a tenant over its limit", lambda: chat("status=tenant_full"),
       status_code=429)
raises(openai.InternalServerError, "a full queue", lambda: chat("status=queue_full"),
       status_code=503)
raises(openai.InternalServerError, "an engine that fails", lambda: chat("status=failed"),
       status_code=500)
raises(openai.AuthenticationError, "nobody's request",
       lambda: client.with_options(base_url=URL + "/anonymous/v1").models.list(), status_code=401)
raises(openai.InternalServerError, "no engine",
       lambda: client.with_options(base_url=URL + "/down/v1").chat.completions.create(
           model="fake", messages=user("x")), status_code=503)
raises(openai.NotFoundError, "no such route", lambda: client.post("/nothing", cast_to=object),
       status_code=404)
