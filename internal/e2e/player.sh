#!/usr/bin/env bash
# Plays with nc (OpenBSD's): player.sh [PORT [STAKE [ROUNDS]]] stakes, proposes a block each round and prints who won.
port=${1:-9000} stake=${2:-100} rounds=${3:-3}
coproc server { nc -N localhost "$port"; }
printf '%s\n' "$stake" $((50 + RANDOM % 10)) >&"${server[1]}"
while ((rounds > 0)) && read -r line; do
	[[ $line == "winning validator: "* ]] || continue
	echo "$line"
	((--rounds == 0)) || echo $((50 + RANDOM % 10)) >&"${server[1]}"
done <&"${server[0]}"
echo quit >&"${server[1]}"
