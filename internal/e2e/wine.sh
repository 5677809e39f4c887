#!/usr/bin/env bash
# Runs the Windows server and the tests of all its packages under wine, and plays with it from Linux.
set -euo pipefail
for tool in go wine wineserver x86_64-w64-mingw32-gcc nc.openbsd; do
	command -v $tool >/dev/null && continue
	echo "there is no $tool here: install Go and, on Debian, wine wine64 gcc-mingw-w64-x86-64 netcat-openbsd" >&2
	exit 1
done
cd "$(dirname "$0")/../.."
dir=$(mktemp -d -t wine.XXXX)
export WINEPREFIX=$dir/prefix WINEDEBUG=-all GOOS=windows ADDR=127.0.0.1:9321 ROUND=2s
trap 'wineserver -k || true; rm -rf "$dir"' EXIT

# wine 8 lacks a DLL that programs built with Go need for random numbers.
cat >"$dir/prng.c" <<'END'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, n); }
END
wine wineboot -i &>/dev/null || true
x86_64-w64-mingw32-gcc -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" "$dir/prng.c" -ladvapi32

# From Go 1.26 on, TempDir deletes files in a way that wine 8 does not know.
GOTOOLCHAIN=go1.25.0 go test -timeout 3m -count=1 -exec wine . ./internal/{console,draw,ledger,linefile,lineconn,settings}
go build -o "$dir/server.exe" .
cd "$dir"
printf 'BROADCAST=1s\r\nMAX_STAKE=1000\r\nCHAIN_FILE=.\\chain.jsonl\r\n' >.env # as a Windows editor saves it

# start starts a server and waits until it listens.
start() {
	: >out
	wine server.exe >out 2>err &
	server=$!
	for _ in {1..100}; do grep -q '^listening' out && return || sleep 0.1; done
	cat out err
	exit 1
}
# stop presses Ctrl-C, which wine makes of SIGINT.
stop() { kill -INT $server; wait $server; }
# has fails unless a file or the output of a command matches a pattern.
has() { grep -Eq -- "$2" "$1" || { echo "no match for $2 in:"; cat "$1"; exit 1; }; }

start
has out 'chain: [A-Z]:.*[^.]\\chain.jsonl'
(printf '1001\n100\n72\n'; sleep 3; printf '73\n'; sleep 3; echo quit) | nc.openbsd -N 127.0.0.1 9321 >alice &
(printf '25\r\n68\r\n'; sleep 5; echo abc) | nc.openbsd -N 127.0.0.1 9321 >bob
wait %2
has alice 'the maximum is 1000'
has alice 'you proposed block 1 with BPM 72'
has alice 'goodbye'
has alice '^\[\{"Index":0,'
has bob 'you proposed block 1 with BPM 68'
has bob 'slashed: "abc"'
has alice 'winning validator'
# Another server, and an editor.
wine server.exe &>second && exit 1
has second '^ADDR=.*; another server may be running'
ADDR=127.0.0.1:9322 wine server.exe &>second && exit 1
has second 'CHAIN_FILE=.*already in use by a server'
ADDR=127.0.0.1:9322 CHAIN_FILE=no/folder wine server.exe &>second && exit 1
has second '[^.]; choose a file'
wine cmd /c 'echo x>> chain.jsonl' &>edit || true
wine server.exe verify >verified
has verified '^ok: [23] blocks'
(printf '5\n70\n'; sleep 5) | nc.openbsd -N 127.0.0.1 9321 >carol &
sleep 1
stop
has carol 'you forged block'
has carol 'the server is shutting down'
blocks=$(wc -l <chain.jsonl)
start
has out "restored $blocks blocks"
stop
wine server.exe fairness >fair
has fair 'Bar \(=\): wins'
cat verified fair
echo "ok: $blocks blocks were forged under $(wine --version)"
