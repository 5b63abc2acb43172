"""Two turns of one session through the generated stubs, with what the second turn restored.

    example_chat.py [--endpoint HOST:PORT] [--max-tokens N] [MESSAGE MESSAGE ...]
"""

import argparse
import os
import sys

import make_stubs

sys.path.insert(0, str(make_stubs.make()))

import grpc  # noqa: E402
from loopserve.chat.v1 import chat_pb2, chat_pb2_grpc  # noqa: E402

MESSAGES = ["The code word is teal. What is the code word?", "Tell me the code word."]


def say(chat, session, message, max_tokens):
    """Streams one turn to standard output; returns the session's id and the final event."""
    request = chat_pb2.TurnRequest(session_id=session)
    request.messages.add(role="user", content=message)
    request.sampling.max_tokens = max_tokens
    print(f"you:   {message}\nmodel: ", end="")
    done = None
    for response in chat.Turn(request, timeout=300):
        event = response.WhichOneof("event")
        if event == "started":
            session = response.started.session_id
        elif event == "delta":
            print(response.delta.text, end="", flush=True)
        else:
            done = response.done
    print()
    return session, done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--endpoint", default=os.environ.get("LOOPSERVE_ENDPOINT", "127.0.0.1:8001"))
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("messages", nargs="*", default=MESSAGES)
    arguments = parser.parse_args()
    session = ""  # the first turn makes one
    with grpc.insecure_channel(arguments.endpoint) as channel:
        chat = chat_pb2_grpc.ChatStub(channel)
        for message in arguments.messages:
            try:
                session, done = say(chat, session, message, arguments.max_tokens)
            except grpc.RpcError as error:
                print(f"\n{error.code().name}: {error.details()}", file=sys.stderr)
                return 1
            usage = done.usage
            restored = (usage.restored_device_tokens + usage.restored_host_tokens
                        + usage.restored_disk_tokens + usage.restored_remote_tokens)
            print(f"       [{usage.prompt_tokens} prompt tokens: {usage.computed_tokens} computed, "
                  f"{restored} restored; first token after {done.timings.ttft_ms:.0f} ms at the worker]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
