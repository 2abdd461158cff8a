"""What a person reads when everything is ready: where things are, and two calls that work when pasted."""

import json
import shlex
import sys
from typing import Any

from config import demo
from config.env import Env
from config.seed import credentials_path
from registry.models import BaseModel

TENANT = "acme"
READER = f'import json, sys; print(json.load(open(sys.argv[1]))["tenants"]["{TENANT}"]["api_key"])'
TEXT = """
Lorayard is ready. Ctrl-C stops it.

Console      {url}/   (user {username}, password in the next file)
Credentials  {path}
API          {url}/v1   (management: {url}/api/docs)

A first call from a shell:

curl -s {url}/v1/chat/completions -H "Authorization: Bearer $({key})" -H 'Content-Type: application/json' -d {body}

The same in {python}:

import json, openai
{tenant} = json.load(open({path!r}))["tenants"]["{tenant}"]
client = openai.OpenAI(base_url="{url}/v1", api_key={tenant}["api_key"])
answer = client.chat.completions.create(model={model!r}, messages={messages!r}, temperature=0, max_tokens=200)
print(answer.choices[0].message.content)
"""


def text(env: Env) -> str:
    """Plaintext keys stay in the file: what is printed ends up in logs."""
    path = credentials_path(env)
    credentials: dict[str, Any] = json.loads(path.read_text())
    call = demo.first_call(env, TENANT, BaseModel.objects.get(is_default=True).name)
    messages = [{"role": "user", "content": call.prompt}]
    body = {"model": call.model, "messages": messages, "temperature": 0, "max_tokens": 200}
    return TEXT.format(
        url=env.url,
        username=credentials["console"]["username"],
        path=str(path),
        key=shlex.join([sys.executable, "-c", READER, str(path)]),
        body=shlex.quote(json.dumps(body)),
        python=sys.executable,
        tenant=TENANT,
        model=call.model,
        messages=messages,
    )
