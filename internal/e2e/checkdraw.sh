#!/bin/sh
# checkdraw.sh BLOCK < what-nc-printed: repeats the draw from the lines that "draw" showed, and compares it with the announcement.
text=$(cat) how=
lines=$(echo "$text" | sed -n "/^block $1: ticket/,/^\$/p" | sed '1d; /^$/d')
hash() { sha256sum | tr -d ' -'; }
draw() { # hash, proposals: the ticket is 1 + hash mod all tickets
	total=$(echo "$2" | cut -d ' ' -f 2 | paste -s -d + - | bc)
	ticket=$(echo "m = $total; ibase = 16; 1 + $(echo "$1" | tr a-f A-F) % m" | bc)
	holder=$(echo "$2" | { while read -r address stake bpm && [ $((sum += stake)) -lt "$ticket" ]; do :; done; echo "$address $bpm"; })
	how="${how}ticket $ticket of $total"; }
draw "$(echo "$lines" | hash)" "$(echo "$lines" | sed 1,3d)"
case $holder in *slashed) how="$how was slashed; redraw: "; draw "$(echo "$lines" | hash | hash)" "$(echo "$lines" | sed '1,3d; / slashed$/d')" ;; esac
secret=$(echo "$lines" | head -n 1) seal=$(echo "$lines" | head -n 3 | hash)
won=$(printf 'winning validator: %s\nblock %s, BPM %s: %s\ndraw %s secret: %s' "${holder% *}" "$1" "${holder#* }" "$how" "$1" "$secret")
case $text in *"draw $1 seal: $seal"*"$won"*) echo "ok: $won" ;; *) echo "does not match what was announced: $won"; exit 1 ;; esac
