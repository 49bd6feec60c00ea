"""openai, anthropic and lm-eval for Python against a running server: python.py URL"""

import sys
import traceback

import anthropic
import openai

URL = sys.argv[1]
HELLO = [{"role": "user", "content": "Hello"}]
failed = 0


def check(name):
    def run(test):
        global failed
        try:
            print(f"ok     {name}: {str(test())[:90]!r}")
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]} ({where.name}:{where.lineno})")

    return run


client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


@check("openai: models")
def _():
    models = client.models.list().data
    assert client.models.retrieve(models[0].id).id == models[0].id
    return [model.id for model in models]


@check("openai: chat")
def _():
    reply = client.chat.completions.create(model="bitnet", messages=HELLO, max_tokens=16)
    assert reply.choices[0].finish_reason in ("stop", "length") and reply.usage.completion_tokens <= 16
    return reply.choices[0].message.content


@check("openai: chat, two answers, logprobs, stop, seed")
def _():
    ask = dict(model="bitnet", messages=HELLO, max_tokens=8, n=2, logprobs=True, top_logprobs=3, stop=["zzz"], seed=7)
    one, two = (client.chat.completions.create(**ask) for _ in range(2))
    assert [c.message.content for c in one.choices] == [c.message.content for c in two.choices]
    assert len(one.choices) == 2 and len(one.choices[0].logprobs.content[0].top_logprobs) == 3
    return one.choices[1].message.content


@check("openai: stream with usage")
def _():
    stream = client.chat.completions.create(model="bitnet", messages=HELLO, max_tokens=16, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    assert chunks[0].choices[0].delta.role == "assistant"
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@check("openai: chat helper collects a stream")
def _():
    with client.chat.completions.stream(model="bitnet", messages=HELLO, max_tokens=16) as stream:
        for _event in stream:
            pass
        return stream.get_final_completion().choices[0].message.content


@check("openai: text completion")
def _():
    reply = client.completions.create(model="bitnet", prompt=["Once upon", "a time"], max_tokens=6, logprobs=2, echo=True)
    assert len(reply.choices) == 2 and reply.choices[0].text.startswith("Once upon")
    return reply.choices[0].text


@check("openai: embeddings")
def _():
    reply = client.embeddings.create(model="bitnet", input=["Hello", "Once upon a time"])
    assert len(reply.data) == 2 and len(reply.data[0].embedding) == len(reply.data[1].embedding) > 0
    return len(reply.data[0].embedding)


@check("openai: responses")
def _():
    reply = client.responses.create(model="bitnet", input="Hello", max_output_tokens=16)
    assert reply.output_text and reply.usage.output_tokens > 0
    return reply.output_text


@check("openai: responses, a stream")
def _():
    numbers, text = [], ""
    for event in client.responses.create(model="bitnet", input="Hello", max_output_tokens=16, stream=True):
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            assert event.output_index == 0 and event.item_id
            text += event.delta
    assert numbers == sorted(set(numbers)) and event.type in ("response.completed", "response.incomplete")
    assert text == event.response.output_text
    return text


STORY = {"type": "object", "properties": {"title": {"type": "string", "maxLength": 30}, "animals": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["title", "animals"], "additionalProperties": False}


@check("openai: an answer by JSON schema")
def _():
    import json

    form = {"type": "json_schema", "json_schema": {"name": "story", "strict": True, "schema": STORY}}
    reply = client.chat.completions.create(model="bitnet", messages=HELLO, max_tokens=100, response_format=form)
    story = json.loads(reply.choices[0].message.content)
    assert set(story) == {"title", "animals"}
    return story


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}}}


@check("openai: a required tool call")
def _():
    import json

    reply = client.chat.completions.create(model="bitnet", messages=HELLO, max_tokens=100, tools=[WEATHER], tool_choice="required")
    call = reply.choices[0].message.tool_calls[0]
    assert reply.choices[0].finish_reason == "tool_calls" and call.id.startswith("call_")
    assert set(json.loads(call.function.arguments)) == {"city"}
    answer = [*HELLO, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    return client.chat.completions.create(model="bitnet", messages=answer, max_tokens=8, tools=[WEATHER]).choices[0].finish_reason


@check("openai: a streamed tool call")
def _():
    import json

    stream = client.chat.completions.create(model="bitnet", messages=HELLO, max_tokens=100, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}, stream=True)
    calls = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert calls[0].id and calls[0].function.name == "weather" and not any(call.id for call in calls[1:])
    return json.loads("".join(call.function.arguments or "" for call in calls))


@check("openai: mistakes are BadRequestError")
def _():
    for wrong in (dict(messages=[]), dict(messages=HELLO, temperature="hot"), dict(messages=HELLO, n=0)):
        try:
            client.chat.completions.create(model="bitnet", **wrong)
        except openai.BadRequestError as error:
            assert error.body["message"]
        else:
            raise AssertionError(f"{wrong} was accepted")
    return "400"


claude = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)


@check("anthropic: messages")
def _():
    reply = claude.messages.create(model="bitnet", max_tokens=16, system="Be brief.", messages=HELLO)
    assert reply.stop_reason in ("end_turn", "max_tokens") and reply.usage.output_tokens > 0
    return reply.content[0].text


@check("anthropic: a stream")
def _():
    with claude.messages.stream(model="bitnet", max_tokens=16, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text
        return text


@check("anthropic: a tool")
def _():
    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    reply = claude.messages.create(model="bitnet", max_tokens=100, messages=HELLO, tools=[tool], tool_choice={"type": "any"})
    assert reply.stop_reason == "tool_use"
    return reply.content[-1].input


@check("anthropic: count_tokens")
def _():
    return claude.messages.count_tokens(model="bitnet", messages=HELLO).input_tokens


# What lm-eval's local-completions model sends and reads, by its own code; its tasks would need data sets.
@check("lm-eval: local-completions, generate")
def _():
    from importlib import import_module

    LocalCompletionsAPI = import_module("lm_eval.models.openai_completions").LocalCompletionsAPI
    import requests

    body = {"prompt": "Once upon a time", "model": "bitnet", "max_tokens": 16, "temperature": 0, "stop": ["\n\n"], "seed": 1234}
    reply = requests.post(f"{URL}/v1/completions", json=body, timeout=60)
    return LocalCompletionsAPI.parse_generations(outputs=reply.json())


@check("lm-eval: local-completions, loglikelihood")
def _():
    from importlib import import_module

    LocalCompletionsAPI = import_module("lm_eval.models.openai_completions").LocalCompletionsAPI
    import requests

    def tokens(text):
        return requests.post(f"{URL}/tokenize", json={"content": text}, timeout=60).json()["tokens"]

    context, likely, unlikely = tokens("Once upon a"), tokens(" time"), tokens(" KV cache")
    prompts = [context + likely, context + unlikely]
    body = {"prompt": prompts, "model": "bitnet", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    reply = requests.post(f"{URL}/v1/completions", json=body, timeout=60)
    (first, is_greedy), (second, _) = LocalCompletionsAPI.parse_logprobs(outputs=reply.json(), tokens=prompts, ctxlens=[len(context)] * 2)
    assert 0 >= first > second and is_greedy, (first, second, is_greedy)
    return first, second


sys.exit(1 if failed else 0)
