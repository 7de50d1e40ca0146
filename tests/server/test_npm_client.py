"""The official JavaScript client: upload, create, poll, download; webhooks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import npm_folder

pytestmark = pytest.mark.clients

START = """
import fs from "node:fs";
import http from "node:http";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "unused" });

async function step(name, body) {
  process.stdout.write(JSON.stringify({ step: name, ...body }) + "\\n");
  await new Promise((resolve) => process.stdin.once("data", resolve));  // the test goes on
}
"""

UPLOAD_TO_DOWNLOAD = """
const file = await client.files.create({
  file: fs.createReadStream(process.env.INPUT),
  purpose: "batch",
  expires_after: { anchor: "created_at", seconds: 7200 },
});
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
  metadata: { from: "npm" },
});
await step("created", { file, batch });
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  batch = await client.batches.retrieve(batch.id);
}
const output = await (await client.files.content(batch.output_file_id)).text();
const listed = [];
for await (const each of client.batches.list({ limit: 1 })) {
  listed.push(each.id);
  if (listed.length === 3) break;
}
const model = await client.models.retrieve(process.env.MODEL);
const models = [];
for await (const each of client.models.list()) models.push(each.id);
const files = [];
for await (const each of client.files.list({ purpose: "batch_output" })) files.push(each.id);
let conflict = null;
try {
  await client.batches.cancel(batch.id);
} catch (error) {
  conflict = { status: error.status, message: error.message, requestID: error.requestID };
}
const second = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
const cancelled = await client.batches.cancel(second.id);
const deleted = await client.files.delete(batch.output_file_id);
let gone = null;
try {
  await client.files.retrieve(batch.output_file_id);
} catch (error) {
  gone = error.constructor.name;
}
await step("done", {
  batch, output, listed, model, models, files, conflict, cancelled, deleted, gone,
});
process.exit(0);
"""

WEBHOOK = """
let received;
const delivery = new Promise((resolve) => { received = resolve; });
const receiver = http.createServer((request, response) => {
  let body = "";
  request.on("data", (part) => { body += part; });
  request.on("end", () => {
    response.writeHead(204).end();
    received({ headers: request.headers, body });
  });
});
await new Promise((resolve) => receiver.listen(0, "127.0.0.1", resolve));
const endpoint = await client.post("/webhook_endpoints", {
  body: {
    name: "npm",
    url: `http://127.0.0.1:${receiver.address().port}/hook`,
    event_types: ["batch.completed"],
  },
});
const file = await client.files.create({
  file: fs.createReadStream(process.env.INPUT),
  purpose: "batch",
});
const batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
await step("created", { batch });
const { headers, body } = await delivery;
const event = await client.webhooks.unwrap(body, headers, endpoint.signing_secret);
const refused = [];
for (const [text, secret] of [
  [body.replace("completed", "cancelled"), endpoint.signing_secret],
  [body, "whsec_" + Buffer.from("somebody else's").toString("base64")],
]) {
  try {
    await client.webhooks.unwrap(text, headers, secret);
  } catch (error) {
    refused.push(error.constructor.name);
  }
}
await step("delivered", { event, refused });
process.exit(0);
"""


class Script:
    """The script at work; it waits after each step until it is told to go on."""

    def __init__(self, folder: Path, text: str, **environment: str) -> None:
        # Node.js looks for modules where a program lies, not where it is started.
        (folder / "node_modules").symlink_to(npm_folder() / "node_modules")
        path = folder / "script.mjs"
        path.write_text(START + text)
        self.process = subprocess.Popen(
            ["node", path],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def next_step(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        step: dict[str, Any] = json.loads(line)
        return step

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_from_upload_to_download(server: Any, engine: Any, tmp_path: Path) -> None:
    lines = engine.lines(3)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = Script(
        tmp_path,
        UPLOAD_TO_DOWNLOAD,
        BASE_URL=f"{server.base_url}/v1",
        INPUT=str(source),
        MODEL=engine.model,
    )
    try:
        created = script.next_step()
        file, batch = created["file"], created["batch"]
        assert (file["filename"], file["bytes"]) == ("in.jsonl", source.stat().st_size)
        assert file["expires_at"] == file["created_at"] + 7200
        assert (batch["status"], batch["metadata"]) == ("validating", {"from": "npm"})
        engine.complete(engine.claim())
        script.go_on()

        done = script.next_step()
        assert done["batch"]["status"] == "completed"
        found = {json.loads(line)["custom_id"] for line in done["output"].splitlines()}
        assert found == {line["custom_id"] for line in lines}
        assert done["listed"][0] == batch["id"]
        assert len(set(done["listed"])) == len(done["listed"])
        assert done["model"]["id"] == engine.model
        assert engine.model in done["models"]
        assert done["batch"]["output_file_id"] in done["files"]
        assert done["deleted"] == {
            "id": done["batch"]["output_file_id"],
            "object": "file",
            "deleted": True,
        }
        assert done["gone"] == "NotFoundError"
        assert done["conflict"]["status"] == 409
        assert "Cannot cancel a batch with status 'completed'." in done["conflict"]["message"]
        assert done["conflict"]["requestID"].startswith("req_")
        assert done["cancelled"]["status"] in {"cancelling", "cancelled"}
        script.go_on()
        assert script.process.wait(timeout=120) == 0
    finally:
        script.close()


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_webhook_is_unwrapped(
    make_server: Callable[..., Any],
    make_engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    server = make_server(webhook_allow_private_addresses=True)
    engine = make_engine(server)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(engine.line("a")) + "\n")
    script = Script(tmp_path, WEBHOOK, BASE_URL=f"{server.base_url}/v1", INPUT=str(source))
    try:
        batch = script.next_step()["batch"]
        engine.complete(engine.claim())
        script.go_on()
        delivered = script.next_step()
        event = delivered["event"]
        assert (event["object"], event["type"]) == ("event", "batch.completed")
        assert event["id"].startswith("evt_")
        assert event["data"] == {"id": batch["id"]}
        assert delivered["refused"] == ["InvalidWebhookSignatureError"] * 2
        script.go_on()
        assert script.process.wait(timeout=120) == 0
    finally:
        script.close()
