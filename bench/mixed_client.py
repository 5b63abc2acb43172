"""Plays the mixed trace against LoopServe (router and one worker, gRPC) and llama-server (HTTP).

    build/venv/bin/python bench/mixed_client.py --model F.gguf --threads 2

Prints JSON: every metric's value in each round. One process plays both sides, so what it costs the
machine is the same for both.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "clients" / "python")]

import make_stubs  # noqa: E402

sys.path.insert(0, str(make_stubs.make()))

import grpc  # noqa: E402
from loopserve.chat.v1 import chat_pb2, chat_pb2_grpc  # noqa: E402
from loopserve.session.v1 import session_pb2, session_pb2_grpc  # noqa: E402
from mixed_trace import (ANSWER_TOKENS, GAP_S, METRICS, SESSIONS, PlayedTurn,  # noqa: E402
                         metrics, plan, spread)

CONTEXT_TOKENS = 4096  # of each session
SYSTEM = "You are a helpful assistant."
READY_S = 120


def say(text):
    print(f"bench: mixed trace: {text}", file=sys.stderr, flush=True)


class Stopwatch:
    """Notes when tokens arrive."""

    def __init__(self):
        self.sent = time.perf_counter()
        self.first = self.last = None
        self.gaps, self.tokens = [], 0

    def arrived(self, count):
        now = time.perf_counter()
        if self.first is None:
            self.first = now
        else:
            self.gaps += spread(now - self.last, count)
        self.last = now
        self.tokens += count

    def turn(self, prompt_tokens):
        if self.tokens != ANSWER_TOKENS:
            raise RuntimeError(f"an answer has {self.tokens} tokens, not {ANSWER_TOKENS}")
        return PlayedTurn(self.sent, self.first, self.last, self.gaps, prompt_tokens, self.tokens)


class LoopServe:
    """A local cluster of one worker."""

    name = "ours"

    def __init__(self, options):
        self.options, self.folder = options, options.folder / "cluster"
        self.sessions = {}

    async def start(self):
        run = subprocess.run(
            [self.options.bin_dir / "loopserve", "up", "--json", "--port=0",
             f"--dir={self.folder}", f"--model={self.options.model}", "--workers=1",
             f"--threads={self.options.threads}", f"--bin-dir={self.options.bin_dir}"],
            stdout=subprocess.PIPE, text=True, check=True, timeout=READY_S)
        router = next(member for member in json.loads(run.stdout)["members"]
                      if member["role"] == "router")
        self.channel = grpc.aio.insecure_channel(router["grpc"])
        self.chat = chat_pb2_grpc.ChatStub(self.channel)
        self.session_stub = session_pb2_grpc.SessionsStub(self.channel)

    async def prepare(self, planned):
        """Nothing: our server renders and encodes the messages."""

    async def turn(self, planned):
        request = chat_pb2.TurnRequest(session_id=self.sessions.get(planned.session, ""))
        if not request.session_id:
            request.messages.add(role="system", content=SYSTEM)
        request.messages.add(role="user", content=planned.text)
        request.sampling.max_tokens = ANSWER_TOKENS
        request.sampling.ignore_eos = True
        watch, done = Stopwatch(), None
        async for response in self.chat.Turn(request):
            event = response.WhichOneof("event")
            if event == "started":
                self.sessions[planned.session] = response.started.session_id
            elif event == "delta" and response.delta.token_ids:
                watch.arrived(len(response.delta.token_ids))
            elif event == "done":
                done = response.done
        return watch.turn(done.usage.prompt_tokens)

    async def forget(self):
        for session in self.sessions.values():
            await self.session_stub.DeleteSession(
                session_pb2.DeleteSessionRequest(session_id=session))
        self.sessions.clear()

    async def stop(self):
        await self.channel.close()
        subprocess.run([self.options.bin_dir / "loopserve", "down", f"--dir={self.folder}"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


class LlamaServer:
    """llama-server with a slot for each session, which keeps the session's KV between turns. It gets
    token ids: the history's, as it generated them, and the new message's."""

    name = "peer"

    def __init__(self, options, flash, unified):
        self.options, self.flash, self.unified = options, flash, unified
        self.encoded, self.history = {}, {}

    def text(self):
        return (f"flash attention {'on' if self.flash else 'off'}, "
                f"{'one KV buffer' if self.unified else 'a KV buffer each'}")

    async def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        flags = {"model": self.options.model, "host": "127.0.0.1", "port": self.port,
                 "threads": self.options.threads, "parallel": SESSIONS,
                 "ctx-size": SESSIONS * CONTEXT_TOKENS, "flash-attn": "on" if self.flash else "off",
                 "cache-reuse": 256, "cache-ram": 0}
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        log = self.options.folder / "llama-server.log"
        with log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                [self.options.llama_server, *words, "--no-ui",
                 "--kv-unified" if self.unified else "--no-kv-unified"], stdout=out, stderr=out)
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"llama-server did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def _post(self, path, body):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                     .encode() + data)
        try:
            yield reader
        finally:
            writer.close()

    async def prepare(self, planned):
        """ChatML as our server renders it, encoded: not part of what is measured."""
        opened = set()
        for turn in planned:
            before = "<|im_end|>\n" if turn.session in opened else (
                f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
            opened.add(turn.session)
            text = f"{before}<|im_start|>user\n{turn.text}<|im_end|>\n<|im_start|>assistant\n"
            async with self._post("/tokenize", {"content": text, "parse_special": True}) as reader:
                answer = (await reader.read()).split(b"\r\n\r\n", 1)[1]
            self.encoded[turn] = json.loads(answer)["tokens"]

    async def turn(self, planned):
        prompt = self.history.get(planned.session, []) + self.encoded[planned]
        watch, answer, final = Stopwatch(), [], None
        async with self._post("/completion", {
                "prompt": prompt, "n_predict": ANSWER_TOKENS, "ignore_eos": True, "stream": True,
                "temperature": 0, "samplers": ["temperature"], "cache_prompt": True,
                "return_tokens": True, "id_slot": planned.session,
                "response_fields": ["tokens_predicted", "tokens_evaluated", "timings"]}) as reader:
            while line := await reader.readline():
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "timings" in event:
                    final = event
                elif event["tokens"]:
                    answer += event["tokens"]
                    watch.arrived(len(event["tokens"]))
        if final is None:
            raise RuntimeError("llama-server broke the answer off")
        # Of a character that takes several tokens only the last one is sent, of half a one none.
        if missing := final["tokens_predicted"] - watch.tokens:
            watch.arrived(missing)
        self.history[planned.session] = prompt + answer
        return watch.turn(final["tokens_evaluated"])

    async def forget(self):
        self.encoded.clear()
        self.history.clear()

    async def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


async def play(server, planned):
    """All turns of the plan at their times."""
    await server.prepare(planned)
    start = time.perf_counter()

    async def session(number):
        played = []
        for turn in planned:
            if turn.session == number:
                await asyncio.sleep(start + turn.arrival - time.perf_counter())
                played.append(await server.turn(turn))
        return played

    numbers = sorted({turn.session for turn in planned})
    turns = [turn for played in await asyncio.gather(*map(session, numbers)) for turn in played]
    await server.forget()
    return turns


async def fastest_peer(options):
    """llama-server at the settings that end a short trace of the same kind earliest."""
    best = LlamaServer(options, flash=False, unified=False)
    fastest = None
    for flash, unified in ((False, False), (True, False), (None, True)):
        tried = LlamaServer(options, best.flash if flash is None else flash, unified)
        await tried.start()
        await play(tried, plan("warm-up", sessions=1, turns=1, gap=0.01))
        start = time.perf_counter()
        await play(tried, plan("probe", turns=2, gap=0.01))
        seconds = time.perf_counter() - start
        await tried.stop()
        say(f"llama-server, {tried.text()}: {seconds:.1f} s")
        if fastest is None or seconds < fastest:
            best, fastest = tried, seconds
    return best


async def compare(options):
    peer = await fastest_peer(options)
    servers = [LoopServe(options), peer]
    result = {server.name: {metric: [] for metric in METRICS} for server in servers}
    prompts = {}
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
            await play(server, plan("warm-up", sessions=1, turns=1, gap=0.01))
        for number in range(options.rounds):
            planned = plan(number, gap=options.gap)
            for server in servers if number % 2 == 0 else servers[::-1]:
                turns = await play(server, planned)
                prompts[server.name] = sum(turn.prompt_tokens for turn in turns)
                values = metrics(turns)
                for metric, value in values.items():
                    result[server.name][metric].append(value)
                say(f"round {number + 1} of {options.rounds}, {server.name}: "
                    + ", ".join(f"{metric} {value:.4g} {METRICS[metric][0]}"
                                for metric, value in values.items()))
    return {**result, "settings": peer.text(),
            "note": f"prompt tokens of the last round: {prompts['ours']}, of llama-server "
                    f"{prompts['peer']}"}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--bin-dir", type=pathlib.Path, default=ROOT / "build/bin")
    parser.add_argument("--llama-server", default=ROOT / "build/reference-venv/bin/llama-server")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=GAP_S, help="mean seconds between two turns")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = pathlib.Path(folder)
        print(json.dumps(asyncio.run(compare(options))))


if __name__ == "__main__":
    main(sys.argv[1:])
