#!/usr/bin/env python3
"""player.py [PORT [STAKE [ROUNDS]]] stakes, proposes a block each round and prints who won."""
import random, socket, sys
port, stake, rounds = [int(arg) for arg in sys.argv[1:]] + [9000, 100, 3][len(sys.argv) - 1:]
with socket.create_connection(("localhost", port)) as conn, conn.makefile("rw", newline="\n") as server:
    print(stake, random.randint(50, 59), sep="\n", file=server, flush=True)
    for line in server:
        if line.startswith("winning validator: "):
            print(line, end="")
            rounds -= 1
            print(random.randint(50, 59) if rounds else "quit", file=server, flush=True)
