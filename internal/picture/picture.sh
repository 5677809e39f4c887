#!/usr/bin/env bash
# Plays a real game of two validators with tmux and nc. Then freeze draws what tmux captured: the server's console,
# Alice's terminal and Bob's, one below the other, as two SVG files. Blue marks what was typed. Nothing else is changed.
# Needs Go, tmux, nc and a free port 9000.
set -euo pipefail
cd "$(dirname "$0")"
dir=$(mktemp -d -t game.XXXX)
mux() { tmux -L "picture-$$" -f /dev/null "$@"; }
trap 'mux kill-server || true; rm -rf "$dir"' EXIT

# play types a line in a window, unless the line is empty, and waits until all that the window shows matches a pattern.
play() {
	[[ -z $2 ]] || mux send-keys -t "$1" "$2" Enter
	for _ in {1..300}; do
		shown=$(mux capture-pane -p -t "$1")
		[[ $shown =~ $3 ]] && return
		sleep 0.1
	done
	printf 'window %s: no match for "%s" within 30 s in:\n%s\n' "$1" "$3" "$shown" >&2
	exit 1
}

# show prints a title and what a window shows.
show() {
	printf '\e[38;5;244m──── %s ────\e[0m\n\n' "$1"
	mux capture-pane -e -p -t "$1" | sed -E $'s/^(\\$ |Enter [^:]*:)(.+)/\\1\e[38;5;32m\\2\e[0m/'
}

go build -o "$dir/proofofstake" ../..
for window in Server Alice Bob; do
	mux new-session -d -s $window -x 106 -y 60 -c "$dir" "PS1='$ ' exec bash --noprofile --norc"
done
play Server 'ADDR=localhost:9000 ROUND=10s ./proofofstake' 'listening on'
play Alice 'nc localhost 9000' ':$'
play Alice 100 'staked.*BPM:$'
play Bob 'nc localhost 9000' ':$'
play Bob 25 'staked.*BPM:$'
play Alice 72 'ticket.*BPM:$'
play Bob 68 'ticket.*BPM:$'
play Alice '' 'winning validator: .*BPM:$'
play Bob '' 'winning validator: .*BPM:$'
play Bob abc 'slashed: '
play Server '' 'block 1: .*slashed: .*"abc"'

game=$(for window in Server Alice Bob; do printf '%s\n\n\n' "$(show $window)"; done)
for theme in light:modus-operandi dark:github-dark; do
	go run github.com/charmbracelet/freeze@v0.2.2 --language ansi --theme "${theme#*:}" --output "game-${theme%:*}.svg" \
		--font.family 'ui-monospace, SFMono-Regular, Menlo, Consolas, monospace' --font.size 12.4 \
		--border.width 1 --border.radius 8 <<<"$game"
done
