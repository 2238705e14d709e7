// One call as code to copy. What a user typed is quoted for its language, never pasted in.

const MODEL = "phospho-multimodal";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A JSON string is a Python string too: \" \\ \n \uXXXX mean the same in both.
const python = (text) => JSON.stringify(text);

const isLoopback = (host) => ["localhost", "127.0.0.1", "[::1]"].includes(host);

function keywords({ origin, parameters, needsKey }) {
  const words = [`base_url=${python(origin)}`];
  const { protocol, hostname } = new URL(origin);
  if (needsKey && protocol === "http:" && !isLoopback(hostname)) words.push("allow_insecure_http=True");
  for (const [name, value] of Object.entries(parameters)) words.push(`${name}=${value}`);
  return words.join(", ");
}

const keyNote = ({ needsKey }) =>
  needsKey ? "# The key comes from the environment: export PHOSPHO_API_KEY=…\n" : "";

export function curl(call) {
  const item = JSON.stringify({ text: call.text, ...call.parameters });
  const before = `{"model":"${MODEL}","inputs":[${item.slice(0, -1)},"image_url":"`;
  const key = call.needsKey ? `    -H "Authorization: Bearer $PHOSPHO_API_KEY" \\\n` : "";
  return `${keyNote(call)}{ printf %s ${shell(before)}
  base64 < ${shell(call.file)} | tr -d '\\n'
  printf %s '"}]}'
} | curl --silent --show-error ${call.origin}/v2/predict \\
    -H 'Content-Type: application/json' \\
${key}    --data-binary @-
`;
}

export function langchain(call) {
  return `${keyNote(call)}from base64 import b64encode
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_phospho import ChatPhospho

picture = b64encode(Path(${python(call.file)}).read_bytes()).decode()
image = {"type": "image", "base64": picture, "mime_type": ${python(call.type)}}
question = {"type": "text", "text": ${python(call.text)}}
model = ChatPhospho(${keywords(call)})
print(model.invoke([HumanMessage([question, image])]).text)
`;
}

export function llamaIndex(call) {
  return `${keyNote(call)}from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index_phospho import PhosphoMultiModal

question = TextBlock(text=${python(call.text)})
image = ImageBlock(path=${python(call.file)})
model = PhosphoMultiModal(${keywords(call)})
message = ChatMessage(role="user", blocks=[question, image])
print(model.chat([message]).message.content)
`;
}
